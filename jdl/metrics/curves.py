"""Metrics of all predictions of a split at once, by scikit-learn.

Predictions are probabilities (batch, classes) with integer targets (batch,), or, of two classes,
the probability of class 1 (batch,) with targets 0 and 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import MAX_BYTES, Metric


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


@dataclass(frozen=True, kw_only=True)
class SensitivityAtSpecificity(Metric):
    """Largest share of class 1 that is found where at least `specificity` of class 0 is not.

    That is over all thresholds of the probability, on two classes. Not a number where a split lacks
    a class.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    specificity: float = 0.95  # share of class 0 below the threshold
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def __post_init__(self) -> None:
        if not 0 <= self.specificity <= 1:
            raise UserError(
                f"SensitivityAtSpecificity needs a specificity in [0, 1], not {self.specificity}"
            )

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the sensitivity."""
        prediction = statistics["prediction"]
        if prediction.ndim > statistics["targets"].ndim and prediction.shape[-1] != 2:
            raise UserError(
                f"{self.name} needs two classes, not {prediction.shape[-1]}: use AUROC of several"
            )
        return _mean_of_curves(self, statistics, self._sensitivity)

    def _sensitivity(self, positive: np.ndarray, score: np.ndarray) -> float:
        from sklearn.metrics import roc_curve

        false, true, _ = roc_curve(positive, score, drop_intermediate=False)
        # The shares are quotients of counts, rounded.
        return float(true[1 - false >= self.specificity - 1e-9].max())


@dataclass(frozen=True, kw_only=True)
class RecallAtPrecision(Metric):
    """Largest share of class 1 that is found where at least `precision` of what is found is right.

    That is over all thresholds of the probability, on two classes; 0 where none is so precise. Not
    a number where a split lacks a class.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    precision: float = 0.9  # share of class 1 among the rows above the threshold
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def __post_init__(self) -> None:
        if not 0 <= self.precision <= 1:
            raise UserError(f"RecallAtPrecision needs a precision in [0, 1], not {self.precision}")

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the recall."""
        prediction = statistics["prediction"]
        if prediction.ndim > statistics["targets"].ndim and prediction.shape[-1] != 2:
            raise UserError(f"{self.name} needs two classes, not {prediction.shape[-1]}")
        return _mean_of_curves(self, statistics, self._recall)

    def _recall(self, positive: np.ndarray, score: np.ndarray) -> float:
        from sklearn.metrics import precision_recall_curve

        precision, recall, _ = precision_recall_curve(positive, score)
        return float(recall[precision >= self.precision - 1e-9].max(initial=0.0))


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
