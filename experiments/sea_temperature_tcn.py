"""Temporal convolutions that forecast the temperature of the sea (Bai et al., 2018).

    for fold in 0 1 2; do jdl train sea_temperature_tcn --data.fold $fold; done

The folds are those of `sea_temperature`.
"""

from dataclasses import replace

from sea_temperature import experiment as lstm

from jdl.models import Forecaster, TemporalConvNet

experiment = replace(
    lstm,
    model=Forecaster(
        TemporalConvNet(embed_dim=32, num_layers=6, dropout_rate=0.2), features=7, lags=(48, 50)
    ),
)
