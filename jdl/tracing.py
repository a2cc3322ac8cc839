"""Helpers for code that runs while JAX traces a step."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import flax.linen as nn
import jax
from jax.core import Tracer
from jax.sharding import AxisType

from jdl.errors import UserError, first_line

ROWS = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are sharded."""


def row_axes(rows: int) -> tuple[str, ...]:
    """Returns the axes of the current mesh over which XLA shards `rows` evenly.

    There are none where each device runs its own program (`pmap`, `shard_map`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(a for a in ROWS if kinds.get(a) == AxisType.Auto and mesh.shape[a] > 1)
    return () if rows % math.prod(mesh.shape[axis] for axis in axes) else axes


def takes_argument(model: nn.Module, name: str) -> bool:
    """Whether a module's `__call__` takes an argument of this name."""
    return name in inspect.signature(type(model).__call__).parameters


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value is concrete, not a tracer."""
    return not isinstance(value, Tracer)


def is_zero(value: Any) -> bool:
    """Returns whether a value is concrete and 0."""
    return is_number(value) and value == 0


@contextlib.contextmanager
def tracing_errors(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Converts errors while a model is traced on examples of these shapes into UserError.

    Raises:
      UserError: model or task cannot take them.
    """
    try:
        yield
    except KeyError as error:
        known = ", ".join(map(repr, sorted(shapes)))
        raise UserError(
            f"the data has no array {error} (it has {known}): name the arrays with "
            f"task.inputs and task.targets"
        ) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the model cannot take examples of shapes {dict(shapes)}: {first_line(error)}"
        ) from error
