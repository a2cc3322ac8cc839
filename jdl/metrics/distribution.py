"""Distances between what a model makes and the data."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import Metric


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Metric):
    """The squared Fréchet distance of predictions and targets, each taken as a Gaussian.

    That is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau, 1982), the form of the
    Fréchet Inception Distance (Heusel et al., 2017), here over the arrays' own elements: one of d
    elements needs several times d examples, and memory for d^2 numbers.
    """

    higher_is_better: ClassVar[bool | None] = False
    in_training: ClassVar[bool] = False

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> Any:
        """See `Metric.statistics`.

        Raises:
          UserError: predictions and targets differ in shape.
        """
        if jnp.shape(prediction) != targets.shape:
            raise UserError(
                f"{self.name} compares arrays of one shape, not {jnp.shape(prediction)} with "
                f"{targets.shape}"
            )
        rows = mask.reshape(len(mask), -1)

        def sums(values: jax.Array) -> tuple[jax.Array, jax.Array]:
            flat = jnp.where(rows, values.reshape(len(mask), -1).astype(jnp.float32), 0)
            products = jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST)
            return flat.sum(0), products

        return {"count": rows[:, 0].sum(), "made": sums(prediction), "real": sums(targets)}

    def compute(self, statistics: Any) -> float:
        """See `Metric.compute`; NaN of fewer than two examples."""
        count = float(statistics["count"])
        if count < 2:
            return math.nan
        (made, spread), (real, other) = (
            (total / count, products / (count - 1) - np.outer(total, total) / (count * (count - 1)))
            for total, products in (statistics["made"], statistics["real"])
        )
        # The eigenvalues of a product of covariances are real and at least 0, but for rounding.
        roots = np.sqrt(np.linalg.eigvals(spread @ other).real.clip(0)).sum()
        return float(((made - real) ** 2).sum() + np.trace(spread + other) - 2 * roots)
