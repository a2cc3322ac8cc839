"""Metrics of classes by pixel.

Predictions are probabilities (batch, height, width, classes) with integer targets (batch, height,
width), or, of two classes, the probability of class 1 (batch, height, width).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.metrics.classification import check_range, class_counts, in_range, predicted_classes
from jdl.metrics.metric import Metric


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
class DiceScore(Metric):
    """Dice coefficient, averaged over images and the classes that occur in them.

    Of each class in an image's targets or predictions, 2 right / (true + predicted) pixels, which
    is the F1 score of its pixels. Those whose target is `ignored_class` do not count.
    """

    higher_is_better: ClassVar[bool | None] = True
    classes: tuple[int, ...] = ()  # classes to average; (): all, such as the background too
    ignored_class: int | None = None  # target of pixels that do not count, such as 255

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Sums the coefficients, and counts them."""
        found, size = predicted_classes(prediction, targets)
        known = in_range(targets, size)
        kept = mask if self.ignored_class is None else mask & (targets != self.ignored_class)
        chosen = self.classes or range(size)
        classes = jnp.asarray([each for each in chosen if each != self.ignored_class])
        counted = (kept & known)[..., None]
        true, predicted = (
            (each[..., None] == classes) & counted for each in (targets.astype(jnp.int32), found)
        )
        pixels = tuple(range(1, targets.ndim))
        both, either = (true & predicted).sum(pixels), true.sum(pixels) + predicted.sum(pixels)
        return {
            "dice": (2 * both / jnp.maximum(either, 1)).sum(),
            "count": (either > 0).sum(),
            "outside": (kept & ~known).sum(),
        }

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the mean, 0 where no class occurs."""
        check_range(statistics, self)
        return float(statistics["dice"] / max(statistics["count"], 1))


def class_iou(statistics: dict[str, Any], ignored_class: int | None) -> np.ndarray:
    """Returns the intersection over union of each class, NaN for those that have none."""
    union = statistics["true"] + statistics["predicted"] - statistics["right"]
    found = np.full(len(union), np.nan)
    np.divide(statistics["right"], union, out=found, where=union > 0)
    if ignored_class is not None and 0 <= ignored_class < len(found):
        found[ignored_class] = np.nan
    return found
