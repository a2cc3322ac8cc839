"""Metrics of multi-label classifiers, equal to scikit-learn's of all predictions at once."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import MAX_BYTES, Metric


@dataclass(frozen=True, kw_only=True)
class AveragePrecision(Metric):
    """Average precision of each class, exact, by scikit-learn; or its mean over the classes.

    Predictions are probabilities (batch, classes), targets 0 or 1 of that shape. A class without a
    positive label has no curve: it is not a number, and has no part in the mean.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    per_class: bool = False  # the value of each class, instead of their mean
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    @property
    def name(self) -> str:
        """`average_precision`, or `average_precision_per_class`."""
        return "average_precision_per_class" if self.per_class else "average_precision"

    def compute(self, statistics: dict[str, Any]) -> Any:
        """Returns the values (classes,), or their mean."""
        from sklearn.metrics import average_precision_score

        prediction, targets = statistics["prediction"], statistics["targets"]
        if prediction.shape != targets.shape or prediction.ndim != 2:
            raise UserError(
                f"{self.name} needs probabilities and targets of one shape (batch, classes), not "
                f"{prediction.shape} with {targets.shape}: use AUPRC for one class per example"
            )
        if not np.isfinite(prediction).all():
            return np.full(prediction.shape[1], np.nan) if self.per_class else float("nan")
        values = np.full(targets.shape[1], np.nan)
        for column in np.flatnonzero(targets.any(0)):
            values[column] = average_precision_score(targets[:, column], prediction[:, column])
        if self.per_class:
            return values
        return float(np.nanmean(values)) if targets.any() else float("nan")
