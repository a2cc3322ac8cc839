"""Bootstrap intervals and permutation tests of differences between groups."""

from collections.abc import Sequence

import numpy as np

NUMBERS = 8_000_000
"""Counts of resampled examples that are in memory at once."""


def bootstrap_sums(
    features: np.ndarray, strata: np.ndarray, num_strata: int, replicas: int, seed: int
) -> np.ndarray:
    """Resamples examples with replacement within each stratum (Efron and Tibshirani, 1993).

    Args:
      features: (examples, statistics).
      strata: (examples,) int from 0.
      num_strata: their number.
      replicas: number of samples.
      seed: of the samples.

    Returns:
      The sums of each stratum in each sample, (replicas, strata, statistics).
    """
    rng = np.random.default_rng(seed)
    found = np.zeros((replicas, num_strata, features.shape[1]))
    for stratum in range(num_strata):
        own = features[strata == stratum]
        count = len(own)
        chunk = max(1, NUMBERS // max(count, 1))
        for begin in range(0, replicas if count else 0, chunk):
            size = min(chunk, replicas - begin)
            drawn = rng.integers(0, count, (size, count), dtype=np.int32)
            drawn += np.arange(size, dtype=np.int32)[:, None] * count
            times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
            found[begin : begin + size, stratum] = times.astype(np.float64) @ own
    return found


def interval(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper percentiles of samples along axis 0, without NaN."""
    tail = (1 - confidence) / 2
    known = ~np.isnan(samples).all(0)
    low, high = np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(samples[:, known], (tail, 1 - tail), axis=0)
    return low, high


def spread(values: np.ndarray) -> np.ndarray:
    """Returns the largest less the smallest along the last axis, NaN left out."""
    known = ~np.isnan(values)
    found = np.where(known, values, -np.inf).max(-1) - np.where(known, values, np.inf).min(-1)
    return np.where(known.any(-1), found, np.nan)


def permutation_p_value(
    above: np.ndarray, below: np.ndarray, permutations: int, seed: int
) -> float:
    """Tests whether a proportion is the same in all groups, by permuting the groups.

    Which `above` of the `below` counted examples of a group have a property is, under permutation,
    multivariate hypergeometric: nothing is permuted one by one.

    Args:
      above: examples with the property by group, (groups,).
      below: examples that are counted by group, (groups,).
      permutations: number of permutations.
      seed: of the permutations.

    Returns:
      The share of permutations, the observed one included, in which the largest proportion less
      the smallest is as large (Phipson and Smyth, 2010); NaN for fewer than two groups.
    """
    known = below > 0
    above, below = (np.rint(x[known]).astype(np.int64) for x in (above, below))
    if len(below) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(below, above.sum(), permutations, method="marginals")
    # Rounding of equal quotients may not decide.
    reached = spread(drawn / below) >= spread(above / below) - 1e-12
    return float((reached.sum() + 1) / (permutations + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number (Holm, 1979); NaN stays and does not count."""
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    order = order[~np.isnan(values[order])]
    found, largest = np.full(len(values), np.nan), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[place]))
        found[place] = largest
    return found.tolist()
