"""Transformer that forecasts the temperature of the sea.

    for fold in 0 1 2; do jdl train sea_temperature_transformer --data.fold $fold; done

The folds are those of `sea_temperature`.
"""

from dataclasses import replace

from sea_temperature import experiment as lstm

from jdl.models import Forecaster, TransformerEncoder
from jdl.optimizers import AdamW, Cosine

experiment = replace(
    lstm,
    model=Forecaster(
        TransformerEncoder(embed_dim=32, num_layers=2, dropout_rate=0.2), features=7, lags=(48, 50)
    ),
    optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.1), weight_decay=1e-2),
)
