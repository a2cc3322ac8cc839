"""Losses of embeddings of two views of each example, with labels or without."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.metrics import Mean

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class EmbeddingLoss:
    """A loss of the embeddings of a batch, in which rows of padding have no part."""

    needs_labels: ClassVar[bool] = False
    """Whether it reads labels; without, it receives None."""

    def __call__(self, views: Array, labels: Array | None, mask: Array) -> Mean:
        """Returns the loss, with the number of unmasked rows, or of their views, as its count.

        Args:
          views: embeddings (batch, 2, features).
          labels: classes (batch,) int.
          mask: (batch,) bool, False for rows of padding.
        """
        raise UserError(f"{type(self).__name__} defines no __call__: return the loss of a batch")


@dataclass(frozen=True, kw_only=True)
class NTXent(EmbeddingLoss):
    """Tells the other view of an example from all others of the batch (SimCLR).

    The normalized temperature-scaled cross-entropy of Chen et al. (2020, equation 1).
    """

    temperature: float = 0.2  # by which cosine similarities are divided

    def __post_init__(self) -> None:
        _check_positive(self, "temperature")

    def __call__(self, views: Array, labels: Array | None, mask: Array) -> Mean:
        """Returns the mean over both views of all unmasked rows."""
        del labels
        return _contrast(views, jnp.arange(len(mask)), mask, self.temperature)


@dataclass(frozen=True, kw_only=True)
class SupCon(EmbeddingLoss):
    """Draws views of examples of one class together, and others apart (Khosla et al., 2020).

    Supervised contrastive learning with the sum outside of the logarithm (equation 2).
    """

    temperature: float = 0.1  # by which cosine similarities are divided

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive(self, "temperature")

    def __call__(self, views: Array, labels: Array | None, mask: Array) -> Mean:
        """Returns the mean over both views of all unmasked rows."""
        assert labels is not None
        return _contrast(views, labels, mask, self.temperature)


@dataclass(frozen=True, kw_only=True)
class VICReg(EmbeddingLoss):
    """Variance, invariance and covariance terms (Bardes et al., 2022, equation 6)."""

    invariance: float = 25.0  # weight of the mean squared difference of the two views
    variance: float = 25.0  # weight of the hinge on standard deviations, at 1
    covariance: float = 1.0  # weight of the squared covariances between features

    def __call__(self, views: Array, labels: Array | None, mask: Array) -> Mean:
        """Returns the loss of the batch, counted once for each unmasked row."""
        del labels
        weights, count = _weights(views, mask)
        x = jnp.where(weights[:, None, None] > 0, views.astype(jnp.float32), 0)
        invariance = (((x[:, 0] - x[:, 1]) ** 2).mean(1) * weights).sum() / count
        variance = covariance = jnp.zeros(())
        for view in range(2):
            centered = _centered(x[:, view], weights, count)
            products = _products(centered, centered) / jnp.maximum(count - 1, 1)
            deviations = jnp.sqrt(jnp.diagonal(products) + 1e-4)
            variance += jax.nn.relu(1 - deviations).mean() / 2
            covariance += _off_diagonal(products) / len(products)
        loss = self.invariance * invariance + self.variance * variance
        return Mean((loss + self.covariance * covariance) * weights.sum(), weights.sum())


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(EmbeddingLoss):
    """Makes the correlations of the features of two views the identity (Zbontar et al., 2021).

    Equation 1, of features normalized over the batch.
    """

    off_diagonal: float = 0.005  # weight of the correlations of different features

    def __call__(self, views: Array, labels: Array | None, mask: Array) -> Mean:
        """Returns the loss of the batch, counted once for each unmasked row."""
        del labels
        weights, count = _weights(views, mask)
        parts = []
        for view in range(2):
            centered = _centered(views[:, view].astype(jnp.float32), weights, count)
            variance = (centered**2).sum(0) / count
            parts.append(centered / jnp.sqrt(variance + 1e-5))
        correlations = _products(*parts) / count
        on = ((jnp.diagonal(correlations) - 1) ** 2).sum()
        loss = on + self.off_diagonal * _off_diagonal(correlations)
        return Mean(loss * weights.sum(), weights.sum())


def _contrast(views: Array, labels: Array, mask: Array, temperature: float) -> Mean:
    """Returns the cross-entropy of each view with those of the same label, as targets alike."""
    _weights(views, mask)
    count = views.shape[1]
    x = views.reshape(-1, views.shape[-1]).astype(jnp.float32)  # (batch * 2, features)
    x = x * jax.lax.rsqrt((x**2).sum(1, keepdims=True) + 1e-12)
    labels, mask = jnp.repeat(labels, count), jnp.repeat(mask.astype(bool), count)
    others = mask & ~jnp.eye(len(x), dtype=bool)
    similar = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST) / temperature
    near = jax.nn.log_softmax(jnp.where(others, similar, -jnp.inf), where=others)
    same = others & (labels[:, None] == labels)
    return Mean.of(-jnp.where(same, near, 0).sum(1) / jnp.maximum(same.sum(1), 1), mask)


def _weights(views: Array, mask: Array) -> tuple[Array, Array]:
    """Returns the weights of rows, and their sum, at least 1."""
    if len(mask) < 2:
        raise UserError("the loss compares the examples of a batch: set batch_size to 2 or more")
    if views.ndim != 3:
        raise UserError(
            f"the model's outputs have shape {(views.shape[0], *views.shape[2:])}, where the loss "
            f"needs embeddings of shape (batch, features)"
        )
    weights = mask.astype(jnp.float32)
    return weights, jnp.maximum(weights.sum(), 1)


def _centered(x: Array, weights: Array, count: Array) -> Array:
    """Returns rows less their mean, those of padding zero."""
    x = jnp.where(weights[:, None] > 0, x, 0)
    return (x - x.sum(0) / count) * weights[:, None]


def _products(x: Array, y: Array) -> Array:
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)


def _off_diagonal(matrix: Array) -> Array:
    """Returns the sum of the squares off the diagonal."""
    return (jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix) ** 2).sum()


def _check_positive(owner: object, name: str) -> None:
    if not (value := getattr(owner, name)) > 0:
        raise UserError(f"{type(owner).__name__}.{name} must be above 0, not {value}")
