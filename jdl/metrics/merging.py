"""Merging of metrics over steps, batches and devices, and their values."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.base import Metrics, Rows
from jdl.typing import PyTree


@flax.struct.dataclass
class Packed:
    """Metrics of one or more steps in a single array, for one transfer to the host.

    Attributes:
      values: (numbers,) or (steps, numbers) float32; for vmapped runs (..., runs, numbers).
      structure: the metrics' tree structure.
      shapes: shape of each of its arrays.
      run: index of the vmapped run to unpack; None: a single run.
    """

    values: Any
    structure: Any = flax.struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)
    run: int | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def of(cls, metrics: Metrics) -> "Packed":
        """Packs the metrics of one step, inside the compiled step.

        Raises:
          UserError: a metric does not merge by addition.
        """
        check_additive(metrics)
        for name, metric in metrics.items():
            if isinstance(metric, Rows):
                raise UserError(
                    f"the metric {name!r} collects rows, which training cannot: compute it in "
                    f"evaluations only, as task.metrics does"
                )
        leaves, structure = jax.tree.flatten(dict(metrics))
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        if not any(shapes):
            return cls(jnp.stack(leaves).astype(jnp.float32), structure, shapes)
        flat = [jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves]
        return cls(jnp.concatenate(flat), structure, shapes)

    def unpack(self) -> list[Metrics]:
        """Returns the metrics of each step; blocks until they are computed.

        Numbers are Python floats, arrays float64.
        """
        values = np.asarray(self.values)
        values = values if self.run is None else values[..., self.run, :]
        sizes = [math.prod(shape) for shape in self.shapes]
        rows = values.astype(np.float64).reshape(-1, sum(sizes))
        if not any(self.shapes):
            return [self.structure.unflatten(row) for row in rows.tolist()]
        ends = np.cumsum(sizes)[:-1]
        return [
            self.structure.unflatten(
                part.reshape(shape) if shape else float(part[0])
                for part, shape in zip(np.split(row, ends), self.shapes, strict=True)
            )
            for row in rows
        ]


def merge(parts: Iterable[Metrics]) -> Metrics:
    """Adds metrics of the same structure, in float64 on the host; `Rows` are collected."""
    total: PyTree = None
    for part in filter(None, parts):
        part = jax.tree.map(_on_host, dict(part), is_leaf=_is_rows)
        total = part if total is None else jax.tree.map(_add, total, part, is_leaf=_is_rows)
    return total or {}


def compute(metrics: Metrics) -> dict[str, Any]:
    """Computes the values of `metrics`: floats, and NumPy arrays of more than one number.

    Metrics of no example are left out: those of which `count` is 0, or all sums are, so that the
    value is undefined.

    Raises:
      UserError: a metric has another value.
    """
    found = {name: _value(name, metric) for name, metric in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values that are numbers, without arrays such as a confusion matrix."""
    return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}


def sum_over_devices(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Merges the metrics of the devices along a mapped axis; returns them as they are without one.

    Raises:
      UserError: a metric does not merge by addition.
    """
    check_additive(metrics)
    if axis_name is None:
        return metrics

    def reduced(node: Any) -> Any:
        if not isinstance(node, Rows):
            return jax.lax.psum(node, axis_name)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), node)

    return jax.tree.map(reduced, dict(metrics), is_leaf=_is_rows)


def check_additive(metrics: Metrics) -> None:
    """Raises a UserError for a metric that has no `compute`, or a `merge` that does not add."""
    for name, metric in metrics.items():
        kind = type(metric)
        if not hasattr(metric, "compute") or jax.tree.leaves(metric) == [metric]:
            raise UserError(
                f"the metric {name!r} is a {kind.__name__}: return a Mean, or another Flax "
                f"dataclass of sums with a method compute"
            )
        if hasattr(metric, "merge") and not _adds(metric):
            raise UserError(
                f"the metric {name!r} ({kind.__module__}.{kind.__name__}) does not merge by adding "
                f"its arrays, so devices and micro-batches cannot be summed: use one of "
                f"jdl.metrics, or a Flax dataclass of sums"
            )


def _adds(metric: Any) -> bool:
    """Whether `merge` of a metric adds its arrays, tried on small integers."""
    leaves, structure = jax.tree.flatten(metric)
    one, other = (
        [np.full(jnp.shape(leaf), 3 * i + start, np.float32) for i, leaf in enumerate(leaves)]
        for start in (2, 7)
    )
    try:
        with jax.ensure_compile_time_eval():
            merged = structure.unflatten(one).merge(structure.unflatten(other))
            found, same = jax.tree.flatten(merged)
            return same == structure and all(
                np.array_equal(a + b, c) for a, b, c in zip(one, other, found, strict=True)
            )
    except Exception:  # a merge that takes no such arrays does not add
        return False


def _is_rows(node: Any) -> bool:
    return isinstance(node, Rows)


def _on_host(node: Any) -> Any:
    if not isinstance(node, Rows):
        return np.asarray(node, np.float64)
    if node.mask is None:
        return node
    return dataclasses.replace(node, values=(node.unmasked(),), mask=None)


def _add(one: Any, other: Any) -> Any:
    if not isinstance(one, Rows):
        return np.add(one, other)
    return dataclasses.replace(one, values=(*one.values, *other.values))


def _value(name: str, metric: Any) -> Any:
    """Returns a float or an array; None if the metric is of no example."""
    empty = not any(np.any(leaf) for leaf in jax.tree.leaves(metric))
    if np.ndim(count := getattr(metric, "count", 1)) == 0 and count == 0:
        return None
    try:
        with np.errstate(all="ignore") if empty else contextlib.nullcontext():
            value = metric.compute()
    except ZeroDivisionError:
        if empty:
            return None
        raise
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"the metric {name!r} computes {value!r}: return a number, or an array of numbers"
        )
    if array.size > 1:
        return array
    value = float(array.reshape(()))
    return None if empty and math.isnan(value) else value


def without_duplicates(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics for display: without `nll` if it equals `loss`, as without smoothing."""
    same = values.get("nll") == values.get("loss")
    return {name: value for name, value in values.items() if not (same and name == "nll")}
