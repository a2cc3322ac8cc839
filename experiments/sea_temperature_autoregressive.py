"""DeepAR on the temperature of the sea: sample paths of 24 hours, each step given the one before.

    jdl train sea_temperature_autoregressive --data.fold 0

The network of `sea_temperature_deepar`, trained on the likelihood of each step given the true value
before it (Salinas et al., 2020). A forecast draws 100 paths, and its quantiles are theirs;
`jdl sample` writes paths. Errors add up over 48 steps of half an hour.
"""

from dataclasses import replace

from sea_temperature import experiment as quantiles

from jdl.models import DeepAR
from jdl.tasks import AutoregressiveForecast

experiment = replace(
    quantiles,
    model=DeepAR(hidden_size=64, features=2, lags=(48, 50), dropout_rate=0.2),
    task=AutoregressiveForecast(distribution="laplace", season=48),
    final_train_evaluation=False,
)
