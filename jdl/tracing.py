"""What is known while a step is traced: concrete numbers, and the axes that shard a batch."""

import math
from typing import Any, TypeGuard

import jax
from jax.core import Tracer
from jax.sharding import AxisType

ROWS = ("data", "fsdp")
"""The axes of a mesh over which the rows of a batch are spread."""


def row_axes(rows: int) -> tuple[str, ...]:
    """Those axes of the mesh in use that `rows` are spread over, by its compiler and evenly.

    There are none where each device runs its own program (`pmap`, `shard_map`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(a for a in ROWS if kinds.get(a) == AxisType.Auto and mesh.shape[a] > 1)
    return () if rows % math.prod(mesh.shape[axis] for axis in axes) else axes


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is known while a step is traced, as numbers are and traced arrays are not."""
    return not isinstance(value, Tracer)


def is_zero(value: Any) -> bool:
    """Whether a value is known to be 0."""
    return is_number(value) and value == 0
