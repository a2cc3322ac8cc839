"""Medians, quartiles, and confidence intervals of ratios."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 4000


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and count."""
    q25, median, q75 = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(median), "q25": float(q25), "q75": float(q75), "n": len(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times faster `ours` is, from the seconds of alternating rounds.

    The bounds are those of a 95 % bootstrap interval of the median over rounds (Efron, 1979): a
    round's two times are adjacent, so a slow machine affects both.
    """
    each = np.asarray(theirs, float) / np.asarray(ours, float)
    draws = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(np.median(each[draws], axis=1), (0.025, 0.975))
    return {"median": float(np.median(each)), "low": float(low), "high": float(high)}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size: 1 where cost grows in proportion."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
