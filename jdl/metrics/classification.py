"""Metrics of classifiers, equal to scikit-learn's of all predictions at once.

Predictions are probabilities (batch, ..., classes) with integer targets (batch, ...), or, of two
classes, the probability of class 1 (batch, ...) with targets 0 and 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import MAX_BYTES, Metric


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
class MeanIoU(Metric):
    """Intersection over union (Jaccard index), averaged over the classes that occur.

    That is, in targets or predictions of the elements whose target is not `ignored_class`. The
    ignored class itself has no part in the mean.
    """

    higher_is_better: ClassVar[bool | None] = True
    ignored_class: int | None = None  # target of elements that do not count, such as 255

    @property
    def name(self) -> str:
        """`mean_iou`."""
        return "mean_iou"

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Counts per class, (classes,): see `class_counts`."""
        kept = mask if self.ignored_class is None else mask & (targets != self.ignored_class)
        return class_counts(prediction, targets, kept)

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the mean over classes of right / (true + predicted - right)."""
        check_range(statistics, self)
        found = class_iou(statistics, self.ignored_class)
        return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


@dataclass(frozen=True, kw_only=True)
class IoU(Metric):
    """Intersection over union of each class, (classes,).

    NaN for classes in neither targets nor predictions, and for `ignored_class`.
    """

    higher_is_better: ClassVar[bool | None] = True
    in_training: ClassVar[bool] = False  # rows of training metrics hold numbers only
    ignored_class: int | None = None  # target of elements that do not count, such as 255

    @property
    def name(self) -> str:
        """`iou`."""
        return "iou"

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Counts per class, (classes,): see `class_counts`."""
        kept = mask if self.ignored_class is None else mask & (targets != self.ignored_class)
        return class_counts(prediction, targets, kept)

    def compute(self, statistics: dict[str, Any]) -> np.ndarray:
        """Returns right / (true + predicted - right) of each class."""
        check_range(statistics, self)
        return class_iou(statistics, self.ignored_class)


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


@dataclass(frozen=True, kw_only=True)
class AUROC(Metric):
    """Area under the receiver operating characteristic curve, exact, by scikit-learn.

    Of several classes the mean of each against the rest. Not a number where a split lacks a class,
    of which no curve exists.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the area."""
        from sklearn.metrics import roc_auc_score

        return _mean_of_curves(self, statistics, roc_auc_score)


@dataclass(frozen=True, kw_only=True)
class AUPRC(Metric):
    """Area under the precision-recall curve as average precision, exact, by scikit-learn.

    Of several classes the mean of each against the rest. Not a number where a split lacks a class,
    of which no curve exists.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the area."""
        from sklearn.metrics import average_precision_score

        return _mean_of_curves(self, statistics, average_precision_score)


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


def class_iou(statistics: dict[str, Any], ignored_class: int | None) -> np.ndarray:
    """Returns the intersection over union of each class, NaN for those that have none."""
    union = statistics["true"] + statistics["predicted"] - statistics["right"]
    found = np.full(len(union), np.nan)
    np.divide(statistics["right"], union, out=found, where=union > 0)
    if ignored_class is not None and 0 <= ignored_class < len(found):
        found[ignored_class] = np.nan
    return found


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
        hint = " or set ignored_class" if isinstance(metric, (IoU, MeanIoU)) else ""
        raise UserError(
            f"{metric.name}: {outside} targets are no class that the model predicts: correct the "
            f"labels{hint}"
        )


def _mean_of_curves(metric: Metric, statistics: dict[str, Any], score: Any) -> float:
    """Returns the score of one probability, or the mean of those of all classes."""
    prediction, targets = statistics["prediction"], statistics["targets"]
    if prediction.shape == targets.shape:
        prediction, targets = prediction.reshape(-1, 1), targets.reshape(-1)
        classes = [1]
    elif prediction.shape[:-1] == targets.shape:
        classes = list(range(prediction.shape[-1]))
        prediction, targets = prediction.reshape(-1, len(classes)), targets.reshape(-1)
        if len(classes) == 2:  # the curve of class 0 mirrors that of class 1
            classes, prediction = [1], prediction[:, 1:]
    else:
        raise UserError(
            f"{metric.name} needs probabilities (batch, classes) with targets (batch,), not "
            f"{prediction.shape} with {targets.shape}: define to_prediction in the task"
        )
    if not np.isfinite(prediction).all():
        return float("nan")
    values = []
    for column, each in enumerate(classes):
        positive = targets == each
        if not 0 < positive.sum() < len(positive):
            return float("nan")
        values.append(score(positive, prediction[:, column]))
    return float(np.mean(values))
