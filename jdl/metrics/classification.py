"""Metrics of classifiers, equal to scikit-learn's of all predictions at once.

Predictions are probabilities (batch, ..., classes) with integer targets (batch, ...), or, of two
classes, the probability of class 1 (batch, ...) with targets 0 and 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import Metric


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix(Metric):
    """Number of examples by true class (rows) and predicted class (columns)."""

    in_training: ClassVar[bool] = False  # rows of training metrics hold numbers only

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Counts the pairs, (classes, classes) int32."""
        found, size = predicted_classes(prediction, targets)
        known = in_range(targets, size)
        kept = (mask & known).astype(jnp.int32)
        index = jnp.where(known, targets, 0) * size + found
        pairs = jnp.zeros(size * size, jnp.int32).at[index.ravel()].add(kept.ravel())
        return {"pairs": pairs.reshape(size, size), "outside": (mask & ~known).sum()}

    def compute(self, statistics: dict[str, Any]) -> np.ndarray:
        """Returns the matrix, (classes, classes) int64."""
        check_range(statistics, self)
        return np.rint(statistics["pairs"]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class MacroF1(Metric):
    """F1 score, averaged over the classes that occur in targets or predictions."""

    higher_is_better: ClassVar[bool | None] = True

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Counts per class, (classes,): see `class_counts`."""
        return class_counts(prediction, targets, mask)

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the mean over classes of 2 right / (true + predicted)."""
        check_range(statistics, self)
        either = statistics["true"] + statistics["predicted"]
        seen = either > 0
        return float(np.mean(2 * statistics["right"][seen] / either[seen])) if seen.any() else 0.0


@dataclass(frozen=True, kw_only=True)
class TopKAccuracy(Metric):
    """Fraction of examples whose class is among the `k` most probable."""

    higher_is_better: ClassVar[bool | None] = True
    k: int = 5  # number of guesses

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"TopKAccuracy needs k >= 1, not {self.k}")

    @property
    def name(self) -> str:
        """`top_5_accuracy` for k = 5."""
        return f"top_{self.k}_accuracy"

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Counts the examples, and those that are right."""
        if jnp.shape(prediction) == targets.shape:
            raise UserError(
                "TopKAccuracy needs probabilities (batch, classes): of two classes, use accuracy"
            )
        size = prediction.shape[-1]
        known = in_range(targets, size)
        label = jnp.where(known, targets, 0)[..., None]
        own = jnp.take_along_axis(prediction, label, -1)
        # Of equal probabilities, scikit-learn ranks the higher class first.
        tied = (prediction == own) & (jnp.arange(size) > label)
        right = ((prediction > own) | tied).sum(-1) < self.k
        return {
            "right": (right & mask & known).sum(),
            "true": (mask & known).sum(),
            "outside": (mask & ~known).sum(),
        }

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the fraction."""
        check_range(statistics, self)
        return float(statistics["right"] / statistics["true"])


@dataclass(frozen=True, kw_only=True)
class CalibrationError(Metric):
    """Expected calibration error (Guo et al., 2017), in `num_bins` bins of equal width.

    The mean over examples of |share of correct predictions - mean confidence| in the example's bin,
    where confidence is the largest probability. Of two classes with one probability, it is that of
    class 1, and the share is that of examples of class 1.
    """

    higher_is_better: ClassVar[bool | None] = False
    num_bins: int = 15  # bins of (0, 1]

    def __post_init__(self) -> None:
        if self.num_bins < 1:
            raise UserError(f"CalibrationError needs num_bins >= 1, not {self.num_bins}")

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Sums of correctness and confidence per bin, (bins,)."""
        if jnp.shape(prediction) == targets.shape:
            confidence, right = prediction, targets == 1
        else:
            confidence, right = prediction.max(-1), prediction.argmax(-1) == targets
        confidence = confidence.astype(jnp.float32)
        edges = np.linspace(0, 1, self.num_bins + 1)[1:-1]
        rounded = edges.astype(np.float32)
        # Rounded down, a float32 is beyond an edge if and only if it is beyond the float64.
        rounded = np.where(rounded > edges, np.nextafter(rounded, np.float32(0)), rounded)
        index = jnp.searchsorted(jnp.asarray(rounded), confidence.ravel())
        bins = jnp.zeros(self.num_bins, jnp.float32)
        return {
            "right": bins.at[index].add((right & mask).astype(jnp.float32).ravel()),
            "confidence": bins.at[index].add(jnp.where(mask, confidence, 0).ravel()),
            "count": mask.sum(dtype=jnp.float32),
        }

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the error."""
        gaps = np.abs(statistics["right"] - statistics["confidence"])
        return float(gaps.sum() / statistics["count"])


def predicted_classes(prediction: jax.Array, targets: jax.Array) -> tuple[jax.Array, int]:
    """Returns the predicted classes, of the targets' shape, and the number of classes.

    Raises:
      UserError: the predictions fit no such targets.
    """
    shape = jnp.shape(prediction)
    if shape == targets.shape:
        return (prediction > 0.5).astype(jnp.int32), 2
    if shape[:-1] != targets.shape:
        raise UserError(
            f"predictions of shape {shape} are no probabilities (batch, ..., classes) for targets "
            f"of shape {targets.shape}: define to_prediction in the task"
        )
    return prediction.argmax(-1), shape[-1]


def class_counts(prediction: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
    """Counts elements per class, for `MacroF1` and the like.

    Returns:
      `true`, `predicted` and `right`, (classes,) int32: elements of the class, predicted as it, and
      both. `outside`: elements whose target is no class.
    """
    found, size = predicted_classes(prediction, targets)
    known = in_range(targets, size)
    label, kept = jnp.where(known, targets, 0).ravel(), (mask & known).ravel()
    found, zeros = found.ravel(), jnp.zeros(size, jnp.int32)
    return {
        "true": zeros.at[label].add(kept.astype(jnp.int32)),
        "predicted": zeros.at[found].add(kept.astype(jnp.int32)),
        "right": zeros.at[label].add((kept & (found == label)).astype(jnp.int32)),
        "outside": (mask & ~known).sum(),
    }


def in_range(targets: jax.Array, size: int) -> jax.Array:
    """Whether each target is a class below `size`.

    Raises:
      UserError: the targets are no integers.
    """
    if not (jnp.issubdtype(targets.dtype, jnp.integer) or targets.dtype == bool):
        raise UserError(f"metrics of classes need integer targets, not {targets.dtype}")
    return (targets >= 0) & (targets < size)


def check_range(statistics: dict[str, Any], metric: Metric) -> None:
    """Raises a UserError if any target counted was no class."""
    if outside := int(statistics["outside"]):
        hint = " or set ignored_class" if hasattr(metric, "ignored_class") else ""
        raise UserError(
            f"{metric.name}: {outside} targets are no class that the model predicts: correct the "
            f"labels{hint}"
        )
