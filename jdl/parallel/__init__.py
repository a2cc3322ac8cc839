"""Strategies that compile one training step for the available devices.

The engine is one `jit` with a global view over a mesh with the axes `data`, `fsdp` and `tensor`.
`Pmap` is the same program under `jax.pmap`. A strategy never changes what is computed.
"""

from jdl.parallel.base import (
    Compilations,
    Functions,
    Steps,
    Strategy,
    batch_shapes,
    state_bytes,
    supported,
)
from jdl.parallel.layouts import DataParallel, FullySharded, Single
from jdl.parallel.pmap import Pmap
from jdl.parallel.tensor import TRANSFORMER, TensorParallel

__all__ = [
    "TRANSFORMER",
    "Compilations",
    "DataParallel",
    "FullySharded",
    "Functions",
    "Pmap",
    "Single",
    "Steps",
    "Strategy",
    "TensorParallel",
    "batch_shapes",
    "state_bytes",
    "supported",
]
