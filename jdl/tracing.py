"""Helpers for code that runs while JAX traces a step."""

import contextlib
import inspect
import math
import os
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType

from jdl.errors import UserError, first_line

PACKAGE = os.path.dirname(__file__) + os.sep

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


def bound_axis(name: str = "data") -> str | None:
    """Returns `name` inside `pmap` or `shard_map` over that axis, else None."""
    try:
        jax.lax.axis_size(name)
    except NameError:
        return None
    return name


def roll_rows(x: jax.Array, shift: int) -> jax.Array:
    """Returns the rows of the global batch rolled along axis 0, of which `x` may be a part.

    Under `pmap` a device has some of the rows, and its neighbors' come from the other devices.
    """
    axis = bound_axis()
    if axis is None:
        return jnp.roll(x, shift, axis=0)
    whole = jnp.roll(jax.lax.all_gather(x, axis, tiled=True), shift, axis=0)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * len(x), len(x))


MODES = {
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "use_running_average"), False),
}
"""Names by which modules take their mode, with the value that they have in training."""


def takes_argument(model: nn.Module, name: str, method: str = "__call__") -> bool:
    """Whether a method of a module takes an argument of this name."""
    return name in _parameters(model, method)


def mode_arguments(model: nn.Module, train: bool, method: str = "__call__") -> dict[str, Any]:
    """Returns the arguments that set a module's mode, by the names that its method takes."""
    known = _parameters(model, method)
    return {name: value is train for name, value in MODES.items() if name in known}


def _parameters(model: nn.Module, method: str) -> Mapping[str, Any]:
    """Returns the parameters of a method; of one that wraps another model, that model's."""
    while (wrapped := getattr(model, "wrapped_model", None)) is not None:
        model = wrapped
    return inspect.signature(getattr(type(model), method)).parameters


def place(error: BaseException) -> str:
    """Returns `" (FILE, line N)"` of the innermost code that is not an installed package's."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if "site-packages" not in file and not file.startswith((PACKAGE, "<")):
            found = f" ({os.path.basename(file)}, line {line})"
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value is concrete, not a tracer."""
    return not isinstance(value, Tracer)


def is_zero(value: Any) -> bool:
    """Returns whether a value is concrete and 0."""
    return is_number(value) and value == 0


@contextlib.contextmanager
def errors_of(subject: str) -> Iterator[None]:
    """Converts errors of what `subject` names into UserError.

    Raises:
      UserError: `SUBJECT: ERROR (FILE, line N)`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__} "
        raise UserError(f"{subject}: {kind}{first_line(error)}{place(error)}") from error


@contextlib.contextmanager
def tracing_errors(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Converts a task's errors while it is traced on examples of these shapes into UserError.

    Those of the model and of transforms are converted where they are called.

    Raises:
      UserError: the task cannot take them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = ", ".join(map(repr, sorted(shapes)))
        if isinstance(error, KeyError) and error.args and error.args[0] not in shapes:
            raise UserError(
                f"the data has no array {error} (it has {known}): name the arrays with "
                f"task.inputs and task.targets{place(error)}"
            ) from error
        raise UserError(
            f"the task cannot take the model's outputs for examples of shapes {dict(shapes)}: "
            f"{first_line(error)}{place(error)}"
        ) from error
