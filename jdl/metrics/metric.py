"""The base class of the metrics in `task.metrics`."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.base import Rows, Sums
from jdl.typing import PyTree

MAX_BYTES = 1 << 30
"""Largest size of the rows of a split that a metric collects, unless it has `max_bytes`."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of whole splits, as a pair of pure functions.

    `statistics` runs inside the compiled step, on the rows of a batch; what it returns is summed
    over batches, micro-batches, devices and processes. `compute` runs on the host, once, and makes
    the value of the sums. So the value is exact under any batching, padding and strategy.

    A metric that no sums give sets `merge` to `concatenate`: the rows that `statistics` returns are
    then collected on the host, in evaluations only, up to `MAX_BYTES`, or a field `max_bytes`.
    """

    higher_is_better: ClassVar[bool | None] = None
    """Whether a higher value is better; None: unknown."""
    merge: ClassVar[Literal["sum", "concatenate"]] = "sum"
    """How statistics of batches are merged."""
    in_training: ClassVar[bool] = True
    """Whether training rows have it too; never if it concatenates."""

    @property
    def name(self) -> str:
        """Its key in the metrics: by default the class's name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> PyTree:
        """Returns the statistics of a batch: a tree of arrays.

        Args:
          prediction: what the task predicts (`Task.to_prediction`), such as probabilities (batch,
            ..., classes) float32.
          targets: the task's targets, (batch, ...).
          mask: bool, of the targets' shape; False for padding, which may not change a sum. Rows
            that are concatenated lose those of padding by themselves.

        By default rows that are concatenated are `prediction` and `targets`.
        """
        del mask
        if self.merge == "concatenate":
            return {"prediction": prediction, "targets": targets}
        raise UserError(f"{type(self).__name__} defines no statistics: return what a batch adds up")

    def compute(self, statistics: PyTree) -> Any:
        """Returns the value, a number or an array.

        Args:
          statistics: of all examples, NumPy arrays: sums as float64, or all rows.
        """
        raise UserError(f"{type(self).__name__} defines no compute: return the metric's value")

    def of(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> Sums | Rows:
        """Returns the mergeable metric of a batch.

        Args:
          prediction, targets: as for `statistics`.
          mask: (batch,), False for rows of padding.

        Raises:
          UserError: the targets have no axis of the batch.
        """
        rows = mask.astype(bool)
        if jnp.shape(targets)[:1] != rows.shape:
            raise UserError(
                f"{type(self).__name__} needs targets (batch, ...) of {len(rows)} rows, not of "
                f"shape {jnp.shape(targets)}"
            )
        each = jnp.broadcast_to(rows.reshape(-1, *(1,) * (targets.ndim - 1)), targets.shape)
        found = self.statistics(prediction, targets, each)
        if self.merge == "sum":
            return Sums(found, each.sum(dtype=jnp.float32), self)
        return Rows(found, rows, self)


def check_metrics(metrics: tuple[Any, ...]) -> None:
    """Raises a UserError unless all are metrics, each with a name of its own."""
    for metric in metrics:
        if not isinstance(metric, Metric):
            example = f"{metric.__name__}()" if isinstance(metric, type) else "MacroF1()"
            raise UserError(
                f"task.metrics holds {metric!r}: it takes objects of jdl.metrics, such as {example}"
            )
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"task.metrics has two metrics named {name!r}: leave one out")


def check_size(metrics: Any, rows: int, batch_size: int, split: str) -> None:
    """Raises a UserError if the rows of a split that a metric collects take too much memory.

    Args:
      metrics: of one batch, as shapes and dtypes.
      rows: number of examples in the split.
      batch_size: rows of that batch.
      split: its name.
    """
    for name, metric in metrics.items():
        if not isinstance(metric, Rows):
            continue
        leaves = jax.tree.leaves(metric.values)
        size = sum(np.prod(x.shape) * x.dtype.itemsize for x in leaves) * rows / batch_size
        limit = getattr(metric.metric, "max_bytes", MAX_BYTES)
        if size > limit:
            raise UserError(
                f"the metric {name!r} of split {split!r} would collect {size:,.0f} bytes "
                f"of predictions for {rows:,} examples, more than its max_bytes of "
                f"{limit:,}: raise that, or leave it out of task.metrics"
            )
