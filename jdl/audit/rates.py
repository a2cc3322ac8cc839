"""Scores of classifiers as functions of sums over examples, so that resampling is a product."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Bins of equal width of the calibration error, as in `jdl.metrics.CalibrationError`."""

PROPORTIONS: Mapping[str, tuple[str, str]] = {
    "selection_rate": ("predicted", "examples"),
    "true_positive_rate": ("right", "true"),
    "false_positive_rate": ("wrong", "others"),
    "precision": ("right", "predicted"),
}
"""Of each rate of a class the counts that are divided."""

RATES = (*PROPORTIONS, "base_rate", "calibration_gap")
"""Scores of one class; the calibration gap is the mean probability less the base rate."""

SCORES = ("accuracy", "nll", "ece")
"""Scores of all classes together."""


@dataclass(frozen=True)
class Sums:
    """Sums over examples of which all scores are made.

    Attributes:
      values: (..., statistics), as the columns of `features`.
      num_classes: number of classes.
    """

    values: np.ndarray
    num_classes: int

    def counts(self, name: str) -> np.ndarray:
        """Returns a count for each class, (..., classes)."""
        parts = ("true", "predicted", "right", "probability")
        if name in parts:
            begin = parts.index(name) * self.num_classes
            return self.values[..., begin : begin + self.num_classes]
        if name == "wrong":
            return self.counts("predicted") - self.counts("right")
        examples = np.broadcast_to(self.examples[..., None], self.counts("true").shape)
        return examples if name == "examples" else examples - self.counts("true")

    @property
    def examples(self) -> np.ndarray:
        """Number of examples, (...)."""
        return np.asarray(self.counts("true").sum(-1))

    def score(self, name: str) -> np.ndarray:
        """Returns one of `SCORES` (...), or one of `RATES` (..., classes); NaN where undefined."""
        count = self.examples
        if name == "accuracy":
            return _divide(self.counts("right").sum(-1), count)
        if name == "nll":
            return _divide(self.values[..., 4 * self.num_classes], count)
        if name == "ece":
            return _divide(np.abs(self.values[..., 4 * self.num_classes + 1 :]).sum(-1), count)
        if name in PROPORTIONS:
            above, below = PROPORTIONS[name]
            return _divide(self.counts(above), self.counts(below))
        base = _divide(self.counts("true"), count[..., None])
        if name == "base_rate":
            return base
        return _divide(self.counts("probability"), count[..., None]) - base


def features(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns what examples add to the sums, (examples, statistics) float64.

    The columns: whether the example is of each class, is predicted as it, and both; its probability
    of each; its cross-entropy in nats; and by bin of confidence, correctness less confidence.

    Args:
      labels: (examples,) int.
      probabilities: (examples, classes).
    """
    rows, classes = probabilities.shape
    p = probabilities.astype(np.float64)
    decided, every = p.argmax(1), np.arange(rows)
    true, predicted = np.eye(classes)[labels], np.eye(classes)[decided]
    confidence = p[every, decided]
    calibration = np.zeros((rows, BINS))
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    calibration[every, bins] = (decided == labels) - confidence
    nll = -np.log(np.maximum(p[every, labels], np.finfo(np.float32).tiny))
    return np.concatenate([true, predicted, true * predicted, p, nll[:, None], calibration], axis=1)


def _divide(above: Any, below: np.ndarray) -> np.ndarray:
    """Returns quotients, NaN where the divisor is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
