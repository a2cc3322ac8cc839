"""Optimizers and learning-rate schedules: frozen dataclasses that build Optax transformations."""

from jdl.optimizers.lookahead import Lookahead
from jdl.optimizers.modules import layer_decay
from jdl.optimizers.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lamb,
    Lion,
    Muon,
    Optimizer,
    RMSprop,
)
from jdl.optimizers.partition import Partition
from jdl.optimizers.pruning import Pruning
from jdl.optimizers.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    RangeTest,
    ReduceOnPlateau,
    Schedule,
    Step,
)
from jdl.optimizers.transforms import average_paths, averaged_params, decay_mask

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Exponential",
    "Lamb",
    "Linear",
    "Lion",
    "Lookahead",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Partition",
    "Pruning",
    "RMSprop",
    "RangeTest",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "average_paths",
    "averaged_params",
    "decay_mask",
    "layer_decay",
]
