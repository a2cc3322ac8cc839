"""Which examples are held out of a split: at random, by class, by group, or the last ones."""

import numpy as np


def hold_out(
    count: int,
    fraction: float,
    seed: int,
    *,
    ordered: bool = False,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted indices (n,) int64 of the examples that stay, and of those held out.

    Args:
      count: number of examples.
      fraction: share to hold out, rounded to whole examples.
      seed: of the random order.
      ordered: hold out the last examples.
      labels: classes (count,), each of which gives its share, to within one example.
      groups: groups (count,) that stay together; as many as come closest to the share.
    """
    if groups is not None:
        return _by_groups(groups, fraction, seed)
    order = np.arange(count) if ordered else np.random.default_rng(seed).permutation(count)
    if labels is not None:
        order = _by_classes(labels, order)
    cut = count - round(count * fraction)
    return np.sort(order[:cut]), np.sort(order[cut:])


def _by_classes(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorders so that the examples of each class are spread evenly over the order.

    The last of n examples of a class is at `1 - 0.5 / n` of the way: any part of the end has the
    share of every class, and the only example of a class is in the middle.
    """
    _, classes, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    grouped = np.argsort(classes, kind="stable")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(order))
    place[grouped] = (np.arange(len(order)) - starts + 0.5) / np.repeat(sizes, sizes)
    return order[np.argsort(place, kind="stable")]


def _by_groups(groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out whole groups, in random order, while that brings their size closer to the share."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    wanted, held = fraction * len(groups), []
    taken = 0
    for group in order:
        if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
            held.append(group)
            taken += sizes[group]
    chosen = np.isin(members, held)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
