"""Thresholds of each group, fitted after training, under which a rate is the same in all groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jdl.audit.groups import Column
from jdl.errors import UserError

Criterion = Literal["demographic_parity", "equal_opportunity"]

RATES = np.linspace(0, 1, 401)
"""Rates that are tried."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the probability of class 1, and what they do to a split.

    They need the group of each example that is predicted.

    Attributes:
      column: of the groups.
      criterion: what is the same in all groups.
      split: that they were fitted on.
      thresholds: by group; an example at or above it is of class 1.
      accuracy, gap: before and after, on the audited split.
    """

    column: str
    criterion: Criterion
    split: str
    thresholds: Mapping[str, float]
    accuracy: tuple[float, float]
    gap: tuple[float, float]


def fit_thresholds(
    labels: np.ndarray, scores: np.ndarray, column: Column, criterion: Criterion
) -> dict[str, float]:
    """Fits thresholds of the highest accuracy at which a rate is the same (Hardt et al., 2016).

    Args:
      labels: (examples,) 0 or 1.
      scores: probability of class 1, (examples,).
      column: the groups.
      criterion: the selection rate, or the true positive rate.

    Raises:
      UserError: a group has no example of class 1, and so no true positive rate.
    """
    found, right = [], np.zeros(len(RATES))
    for code, name in enumerate(column.groups):
        own = column.codes == code
        counted = own if criterion == "demographic_parity" else own & (labels == 1)
        if not counted.any():
            raise UserError(
                f"the group {name!r} of {column.name!r} has no example of class 1 to fit a "
                f"threshold on: use demographic_parity, or a larger split"
            )
        ranked = np.sort(scores[counted])[::-1]
        chosen = np.rint(RATES * len(ranked)).astype(int)
        edges = np.append(ranked, ranked[-1])[np.maximum(chosen - 1, 0)]
        edges = np.where(chosen > 0, edges, np.inf)
        found.append(edges)
        decided = scores[own][:, None] >= edges
        right += (decided == labels[own][:, None]).sum(0)
    best = int(np.argmax(right))
    return {n: float(edges[best]) for n, edges in zip(column.groups, found, strict=True)}


def decide(scores: np.ndarray, column: Column, thresholds: Mapping[str, float]) -> np.ndarray:
    """Returns whether examples are of class 1, (examples,) bool.

    Raises:
      UserError: a group has no threshold.
    """
    for name in column.groups:
        if name not in thresholds:
            raise UserError(
                f"the group {name!r} of {column.name!r} does not occur in the calibration split, "
                f"which gives it no threshold: raise data.calibration_fraction"
            )
    edges = np.array([thresholds[name] for name in column.groups])
    return scores >= edges[column.codes]


def rate_gap(
    labels: np.ndarray, decided: np.ndarray, column: Column, criterion: Criterion
) -> float:
    """Returns the largest difference of the rate between two groups."""
    counted = np.ones(len(labels), bool) if criterion == "demographic_parity" else labels == 1
    rates = [decided[counted & (column.codes == g)] for g in range(len(column.groups))]
    means = [float(each.mean()) for each in rates if len(each)]
    return max(means) - min(means)
