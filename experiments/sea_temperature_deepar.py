"""LSTM that forecasts a distribution of the temperature of the sea, as DeepAR does.

    jdl train sea_temperature_deepar --data.fold 0

It maximizes the likelihood of a Laplace distribution of each step (Salinas et al., 2020), but of
all steps at once; `sea_temperature_autoregressive` draws one after another, as DeepAR itself.
"""

from dataclasses import replace

from sea_temperature import experiment as quantiles

experiment = replace(
    quantiles,
    model=quantiles.model.clone(features=2),
    task=replace(quantiles.task, distribution="laplace"),
)
