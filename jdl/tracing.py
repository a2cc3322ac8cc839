"""What is known while a step is traced: which numbers are, and where the rows of a batch lie."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

import flax.linen as nn
import jax
from jax.core import Tracer
from jax.sharding import AxisType

T = TypeVar("T")

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


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """A copy of a nest of frozen dataclasses with other values at some paths, unchecked.

    Where `jdl.override` reads and checks what a user gives, this puts traced arrays in the place of
    numbers.
    """
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        below.setdefault(name, {})[rest] = value
    new = {
        name: rest[""] if "" in rest else with_values(_child(config, name), rest)
        for name, rest in below.items()
    }
    return _replaced(config, new)


def _child(config: Any, name: str) -> Any:
    return config[int(name)] if isinstance(config, tuple) else getattr(config, name)


def _replaced(config: Any, new: Mapping[str, Any]) -> Any:
    if isinstance(config, tuple):
        return tuple(new.get(str(index), old) for index, old in enumerate(config))
    if isinstance(config, nn.Module):
        return config.clone(**new)
    assert dataclasses.is_dataclass(config)
    changed = copy.copy(config)  # without __post_init__, which compares numbers
    for name, value in new.items():
        object.__setattr__(changed, name, value)
    return changed
