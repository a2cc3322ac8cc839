"""Metrics as sums that merge by addition.

A metric is a `total` and a `count`, summed over micro-batches, devices (`lax.psum`) and batches.
`compute` divides last, so a metric is exact under any batching and padding.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.typing import PyTree

HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "bleu"), True),
    **dict.fromkeys(("iou", "dice", "psnr", "ssim"), True),
    **dict.fromkeys(("loss", "nll", "perplexity", "bits_per_byte", "wer", "cer", "fid"), False),
    **dict.fromkeys(("mse", "rmse", "mae", "mape"), False),
}
"""Whether a higher value is better, by the usual names of metrics; see `Task.higher_is_better`."""


@flax.struct.dataclass
class Mean:
    """A weighted mean: `total` is the sum of the values, `count` the sum of their weights."""

    higher_is_better: ClassVar[bool | None] = None  # None: unknown, a mean may be of anything
    total: Any
    count: Any

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> "Mean":
        """Returns the mean of `values` (batch, ...) weighted by `mask`, of the same shape.

        Values of weight 0 or False are ignored, even NaN.

        Raises:
          UserError: the shapes differ; broadcasting (32, 1) against (32,) would sum 32 times.
        """
        if jnp.shape(values) != jnp.shape(mask):
            raise UserError(
                f"Mean.of needs a mask of the values' shape {jnp.shape(values)}, not "
                f"{jnp.shape(mask)}: reshape the values, or broadcast the mask"
            )
        mask = mask.astype(jnp.float32)
        return cls(jnp.sum(jnp.where(mask > 0, values, 0.0) * mask), jnp.sum(mask))

    def compute(self) -> float:
        """Returns the value as a Python float."""
        return float(self.total / self.count)


@flax.struct.dataclass
class Perplexity(Mean):
    """exp of a mean cross-entropy in nats (Jelinek et al., 1977)."""

    higher_is_better: ClassVar[bool | None] = False

    def compute(self) -> float:
        """Returns the value as a Python float; infinite if exp overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.total / self.count))


@flax.struct.dataclass
class BitsPerByte(Mean):
    """Cross-entropy in bits per byte: `total` in nats, `count` the bytes of the predicted text."""

    higher_is_better: ClassVar[bool | None] = False

    def compute(self) -> float:
        """Returns the value as a Python float."""
        return float(self.total / self.count / np.log(2))


@flax.struct.dataclass
class RootMean(Mean):
    """The square root of a mean of squares, as in the root mean squared error."""

    higher_is_better: ClassVar[bool | None] = False

    def compute(self) -> float:
        """Returns the value as a Python float."""
        return float(np.sqrt(self.total / self.count))


Metrics = Mapping[str, Mean]


@flax.struct.dataclass
class Packed:
    """Metrics of one or more steps in a single array, for one transfer to the host.

    Attributes:
      values: (leaves,) or (steps, leaves) float32; for vmapped runs (..., runs, leaves).
      structure: the metrics' tree structure.
      run: index of the vmapped run to unpack; None: a single run.
    """

    values: Any
    structure: Any = flax.struct.field(pytree_node=False)
    run: int | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def of(cls, metrics: Metrics) -> "Packed":
        """Packs the metrics of one step, inside the compiled step."""
        leaves, structure = jax.tree.flatten(dict(metrics))
        return cls(jnp.stack(leaves).astype(jnp.float32), structure)

    def unpack(self) -> list[Metrics]:
        """Returns the metrics of each step as Python floats; blocks until they are computed."""
        values = np.asarray(self.values)
        values = values if self.run is None else values[..., self.run, :]
        rows = values.astype(np.float64).reshape(-1, self.structure.num_leaves)
        return [self.structure.unflatten(row) for row in rows.tolist()]


def merge(parts: Iterable[Metrics]) -> Metrics:
    """Adds metrics of the same structure, in float64 on the host."""
    total: PyTree = None
    for part in parts:
        part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total or {}


def compute(metrics: Metrics) -> dict[str, float]:
    """Computes the values of `metrics`, without those whose count is 0."""
    return {name: metric.compute() for name, metric in metrics.items() if metric.count > 0}


def without_duplicates(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics for display: without `nll` if it equals `loss`, as without smoothing."""
    same = values.get("nll") == values.get("loss")
    return {name: value for name, value in values.items() if not (same and name == "nll")}
