"""Losses of segmentation, for `Segmentation.losses`."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.metrics import Mean

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class PixelLoss:
    """A loss of pixels' logits as a mean, which is exact under any batching."""

    @property
    def name(self) -> str:
        """Its key in the metrics and in `loss_terms`: the class's name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def __call__(self, logits: Array, true: Array, weights: Array) -> Mean:
        """Returns the loss.

        Args:
          logits: (batch, height, width, classes) float32.
          true: of the same shape, one-hot; all 0 for pixels that do not count.
          weights: (classes,) float32.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(PixelLoss):
    """Softmax cross-entropy in nats, a weighted mean over pixels."""

    def __call__(self, logits: Array, true: Array, weights: Array) -> Mean:
        """See `PixelLoss`."""
        return Mean.of(_nll(logits, true), (true * weights).sum(-1))


@dataclass(frozen=True, kw_only=True)
class Focal(PixelLoss):
    """Focal loss (Lin et al., 2017): cross-entropy times (1 - probability of the class)^gamma."""

    gamma: float = 2.0  # 0: the cross-entropy

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise UserError(f"Focal needs gamma >= 0, not {self.gamma}")

    def __call__(self, logits: Array, true: Array, weights: Array) -> Mean:
        """See `PixelLoss`."""
        nll = _nll(logits, true)
        # Of a probability that is 1, the gradient of a power below 1 is infinite.
        doubt = jnp.maximum(-jnp.expm1(-nll), 1e-7)
        return Mean.of(doubt**self.gamma * nll, (true * weights).sum(-1))


@dataclass(frozen=True, kw_only=True)
class Dice(PixelLoss):
    """1 - soft Dice coefficient (Milletari et al., 2016), a mean over images and their classes.

    Of each class that occurs in an image, 1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth)
    over the image's pixels, where p is the class's probability and y is 1 for pixels of the class.
    """

    smooth: float = 1.0  # pixels added to numerator and denominator

    def __call__(self, logits: Array, true: Array, weights: Array) -> Mean:
        """See `PixelLoss`."""
        shares = jnp.where(true.any(-1, keepdims=True), jax.nn.softmax(logits), 0)
        both, found, wanted = (x.sum((1, 2)) for x in (shares * true, shares, true))
        dice = (2 * both + self.smooth) / (found + wanted + self.smooth)
        return Mean.of(1 - dice, (wanted > 0) * weights)


def _nll(logits: Array, true: Array) -> Array:
    """Returns each pixel's cross-entropy; a product, since CPUs and TPUs are slow to gather."""
    return jax.nn.logsumexp(logits, -1) - (true * logits).sum(-1)
