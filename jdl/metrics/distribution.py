"""Distances between what a model makes and the data."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import Metric

CHUNK = 1000
"""Rows between which distances are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Metric):
    """The squared Fréchet distance of predictions and targets, each taken as a Gaussian.

    See `frechet_distance`; here over the arrays' own elements: d of them need several times d
    examples, and memory for d^2 numbers.
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
        made, real = (
            (total / count, products / (count - 1) - np.outer(total, total) / (count * (count - 1)))
            for total, products in (statistics["made"], statistics["real"])
        )
        return _of_gaussians(made, real)


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """Computes the squared Fréchet distance of two sets, each taken as a Gaussian.

    That is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau, 1982); in the features
    of Inception it is the Fréchet Inception Distance (Heusel et al., 2017). It falls with the
    number of rows: compare values of equal numbers.

    Args:
      features, other: (rows, d), of several times d rows.

    Returns:
      The distance; NaN of features that are not finite, or of fewer than two rows.
    """
    if min(len(features), len(other)) < 2 or not _finite(features, other):
        return math.nan
    made, real = (
        (x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))
        for x in (np.asarray(each, np.float64) for each in (features, other))
    )
    return _of_gaussians(made, real)


def kernel_distance(
    features: np.ndarray,
    other: np.ndarray,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Computes the Kernel Inception Distance of two sets (Binkowski et al., 2018).

    That is the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, of equal
    distributions 0 on average, over random subsets. The subsets are those of torch-fidelity.

    Args:
      features, other: (rows, d). Its value depends on their scale.
      num_subsets: pairs of subsets.
      subset_size: rows of each, at most all.
      seed: of the subsets.

    Returns:
      Mean and standard deviation over the subsets; NaN of features that are not finite, or of fewer
      than two rows.
    """
    size = min(subset_size, len(features), len(other))
    if size < 2 or not _finite(features, other):
        return math.nan, math.nan
    x, y = np.asarray(features, np.float64), np.asarray(other, np.float64)
    rng, found = np.random.RandomState(seed), []
    for _ in range(num_subsets):
        a, b = (each[rng.choice(len(each), size, replace=False)] for each in (x, y))
        within = sum(_kernel(each, each).sum() - _diagonal(each).sum() for each in (a, b))
        found.append(within / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    return float(np.mean(found)), float(np.std(found))


def precision_and_recall(
    features: np.ndarray, other: np.ndarray, *, num_neighbors: int = 3
) -> tuple[float, float]:
    """Computes precision and recall of samples (Kynkäänniemi et al., 2019).

    A set's manifold is the union of balls around its rows that reach to their k-th nearest
    neighbor. Precision is the share of samples in the manifold of the images, recall the share of
    images in that of the samples.

    Args:
      features: of samples, (rows, d).
      other: of images, (rows, d).
      num_neighbors: k.

    Returns:
      Precision and recall; NaN of features that are not finite, or of k rows or fewer.
    """
    if min(len(features), len(other)) <= num_neighbors or not _finite(features, other):
        return math.nan, math.nan
    x, y = np.asarray(features, np.float64), np.asarray(other, np.float64)
    k = num_neighbors  # after the row itself, which is its own nearest neighbor
    radii = [
        np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _squares(a, a)]) for a in (x, y)
    ]
    precise = [(d <= radii[1]).any(1) for d in _squares(x, y)]
    recalled = [(d <= radii[0]).any(1) for d in _squares(y, x)]
    return float(np.concatenate(precise).mean()), float(np.concatenate(recalled).mean())


def nearest_distances(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Computes the Euclidean distance of each row to the nearest of the references.

    Args:
      rows: (rows, d).
      references: (references, d).

    Returns:
      (rows,) float64, exactly 0 for a copy.
    """
    x, y = rows.astype(np.float32), references.astype(np.float32)
    nearest = np.concatenate([d.argmin(1) for d in _squares(x, y)])
    # Differences of large squares, by which the nearest is found, say little of small distances.
    return np.sqrt(((rows.astype(np.float64) - references[nearest]) ** 2).sum(1))


def _of_gaussians(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """Returns the squared Fréchet distance of two Gaussians, given means and covariances."""
    (mean, spread), (center, width) = one, other
    # The eigenvalues of a product of covariances are real and at least 0, but for rounding.
    roots = np.sqrt(np.linalg.eigvals(spread @ width).real.clip(0)).sum()
    return float(((mean - center) ** 2).sum() + np.trace(spread + width) - 2 * roots)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner  # several times as fast as a power


def _diagonal(x: np.ndarray) -> np.ndarray:
    return ((x * x).sum(1) / x.shape[1] + 1) ** 3


def _squares(x: np.ndarray, y: np.ndarray) -> Any:
    """Yields squared distances between some rows of `x` and all of `y`."""
    lengths = (y * y).sum(1)
    for begin in range(0, len(x), CHUNK):
        part = x[begin : begin + CHUNK]
        yield (part * part).sum(1)[:, None] + lengths - 2 * part @ y.T


def _finite(*arrays: np.ndarray) -> bool:
    return all(np.isfinite(array).all() for array in arrays)
