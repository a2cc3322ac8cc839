"""Metrics as sums that merge by addition.

A metric is a Flax dataclass of arrays, such as a `total` and a `count`, which are summed over
micro-batches, devices (`lax.psum`) and batches. Its `compute` divides last, so a metric is exact
under any batching and padding. Those of `clu` and `metrax` whose `merge` adds may be used as well.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError

HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "auprc", "bleu"), True),
    **dict.fromkeys(("iou", "dice", "psnr", "ssim"), True),
    **dict.fromkeys(("loss", "nll", "perplexity", "bits_per_byte", "wer", "cer", "fid"), False),
    **dict.fromkeys(("mse", "rmse", "mae", "mape"), False),
    **dict.fromkeys(("kernel_distance", "frechet_distance"), False),
    **dict.fromkeys(("mase", "wql", "mae_last_value", "mae_last_season"), False),
    **dict.fromkeys(("hit_rate", "ndcg", "mrr", "sampled_hit_rate", "sampled_ndcg"), True),
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
class SumOfMeans:
    """The sum of several means, such as the terms of a loss; one of no element counts as 0.

    Attributes:
      means: a `Mean` for each term.
    """

    means: tuple[Mean, ...]

    @property
    def total(self) -> Any:
        """The value, of numbers or of traced arrays."""
        # A mean of no element has a total of 0, which is divided by 1.
        return sum(mean.total / (mean.count + (mean.count == 0)) for mean in self.means)

    @property
    def count(self) -> Any:
        """1, or 0 where no term has an element."""
        return (sum(mean.count for mean in self.means) > 0) * 1.0

    def compute(self) -> float:
        """Returns the value as a Python float."""
        return float(self.total)


@flax.struct.dataclass
class RootMean(Mean):
    """The square root of a mean of squares, as in the root mean squared error."""

    higher_is_better: ClassVar[bool | None] = False

    def compute(self) -> float:
        """Returns the value as a Python float."""
        return float(np.sqrt(self.total / self.count))


Metrics = Mapping[str, Any]
"""Metrics by name: Flax dataclasses of sums with a method `compute`."""


@flax.struct.dataclass
class Sums:
    """What a `Metric` sums over examples.

    Attributes:
      values: the tree of its sums.
      count: number of elements with a mask of True.
      metric: computes the value.
    """

    values: Any
    count: Any
    metric: Any = flax.struct.field(pytree_node=False)

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a higher value is better; None if unknown."""
        return self.metric.higher_is_better

    def compute(self) -> Any:
        """Returns the value."""
        return self.metric.compute(self.values)


@flax.struct.dataclass
class Rows:
    """What a `Metric` collects of examples.

    Attributes:
      values: a tree of arrays (batch, ...); merged on the host, a tuple of such trees.
      mask: (batch,), False for rows of padding; None on the host, where these are left out.
      metric: computes the value.
    """

    values: Any
    mask: Any
    metric: Any = flax.struct.field(pytree_node=False)

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a higher value is better; None if unknown."""
        return self.metric.higher_is_better

    def unmasked(self) -> Any:
        """Returns `values` on the host, without rows of padding."""
        mask = np.asarray(self.mask)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[mask], self.values)

    def compute(self) -> Any:
        """Returns the value of all rows."""
        return self.metric.compute(
            jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.values)
        )
