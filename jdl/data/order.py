"""The order of training examples: a function of seed and position alone."""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order of examples in an epoch, (size,) int64."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def example_indices(
    positions: np.ndarray, size: int, seed: int, shuffle: bool = True
) -> np.ndarray:
    """Returns example indices (n,) int32 of training positions (n,)."""
    if not shuffle:
        return (positions % size).astype(np.int32)
    epoch, begin = divmod(int(positions[0]), size)
    if begin + positions[-1] - positions[0] < size:  # the common case: one epoch, one lookup
        return permutation(seed, epoch, size)[positions - epoch * size].astype(np.int32)
    epochs = epoch_numbers(positions, size)
    indices = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permutation(seed, int(epoch), size)[positions[here] % size]
    return indices


def epoch_numbers(positions: np.ndarray, size: int) -> np.ndarray:
    """Returns the epochs (n,) int32 of training positions (n,)."""
    return (positions // size).astype(np.int32)


@dataclass(frozen=True)
class Mixing:
    """The order in which streams of examples take turns, each with its share.

    Of any positions in a row, a stream has its share up to one, or up to two where there are more
    than two streams; of a batch exactly, where the shares of all streams are whole numbers.
    """

    sizes: tuple[int, ...]  # examples of each stream
    shares: tuple[Fraction, ...]  # of the positions; they add up to 1

    @property
    def epoch_size(self) -> int:
        """Positions until every example of every stream was seen."""
        return max(
            math.ceil(size / share) for size, share in zip(self.sizes, self.shares, strict=True)
        )

    def streams(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stream of each position, and how many positions it had before, (n,)."""
        number = np.full(len(positions), len(self.shares) - 1)
        place, rest = positions.copy(), Fraction(1)
        open_ = np.ones(len(positions), bool)
        for stream, share in enumerate(self.shares[:-1]):
            # The stream against those after it, by Bresenham's line.
            part, rest = share / rest, rest - share
            before = place * part.numerator // part.denominator
            taken = open_ & ((place + 1) * part.numerator // part.denominator > before)
            number[taken] = stream
            place = np.where(taken, before, np.where(open_, place - before, place))
            open_ &= ~taken
        return number, place

    def order(
        self, positions: np.ndarray, seed: int, shuffle: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns example indices and epochs of positions, (n,) int32; streams lie in a row."""
        number, place = self.streams(positions)
        indices, epochs = np.zeros(len(positions), np.int32), np.zeros(len(positions), np.int32)
        for stream, size in enumerate(self.sizes):
            own = np.flatnonzero(number == stream)
            if own.size:
                # Streams of one size would otherwise meet in the same pairs in every epoch.
                apart = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
                indices[own] = example_indices(place[own], size, apart, shuffle)
                indices[own] += sum(self.sizes[:stream])
                epochs[own] = epoch_numbers(place[own], size)
        return indices, epochs


def training_order(
    positions: np.ndarray, size: int, mixing: Mixing | None, seed: int, shuffle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns example indices and epochs of training positions, (n,) int32 each."""
    if mixing is not None:
        return mixing.order(positions, seed, shuffle)
    return example_indices(positions, size, seed, shuffle), epoch_numbers(positions, size)
