"""Training batches of examples of similar length, which hold less padding."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jdl.errors import UserError

BUCKETS = 1
"""Spawn key of the order of batches, apart from that of other draws."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Groups training examples by length, and cuts each batch to its longest example.

    Examples are shuffled as without buckets; those of `window` batches in a row are then sorted by
    length, divided into batches again, and these are trained on in random order. Each batch is cut
    to the first of `boundaries` that holds its longest example, and the step is compiled once for
    each. All of this is a function of seed and step. Evaluation has whole arrays.

    The length of an example is the place of the last item of `by` that is not 0: of tokens padded
    with 0, or of the mask that `Pad` adds.
    """

    boundaries: tuple[int, ...] = field(kw_only=False)  # ascending lengths; beyond the last: whole
    names: tuple[str, ...] = ("tokens",)  # arrays to cut along axis 0 of an example
    by: str = ""  # the array that has the length; empty: the first of `names`
    window: int = 50  # batches that are sorted together; at most an epoch

    def __post_init__(self) -> None:
        bounds = self.boundaries
        if not self.names or not bounds or min(bounds) < 1 or sorted({*bounds}) != list(bounds):
            raise UserError(
                f"Buckets needs names and ascending boundaries above 0, not {self.names} and "
                f"{bounds}"
            )
        if self.window < 1:
            raise UserError(f"Buckets needs a window of at least 1 batch, not {self.window}")

    def length(self, example: Mapping[str, np.ndarray]) -> int:
        """Returns the length of an example.

        Raises:
          UserError: it lacks an array, or one has no axis.
        """
        for name in (*self.names, self.by or self.names[0]):
            if name not in example or not example[name].ndim:
                known = ", ".join(map(repr, example))
                raise UserError(f"data.buckets finds no list {name!r} (there are {known})")
        values = example[self.by or self.names[0]]
        return int(np.flatnonzero(values.reshape(len(values), -1).any(1)).max(initial=-1)) + 1

    def choose(
        self, positions: np.ndarray, lengths: np.ndarray, seed: int, window: int, place: int
    ) -> np.ndarray:
        """Returns which examples of a window make up one of its batches, (batch,) int64.

        Args:
          positions: (batches, batch) training positions of the window.
          lengths: (batches * batch,) lengths of their examples.
          seed: of the run.
          window: number of the window.
          place: of the batch in it.
        """
        order = np.argsort(lengths, kind="stable").reshape(positions.shape)
        seeds = np.random.SeedSequence((seed, window), spawn_key=(BUCKETS,))
        return order[np.random.default_rng(seeds).permutation(len(positions))[place]]

    def cut(self, batch: Mapping[str, np.ndarray], longest: int) -> dict[str, np.ndarray]:
        """Returns a batch cut to the boundary of its longest example."""
        limit = next((bound for bound in self.boundaries if bound >= longest), None)
        return {**batch, **{name: batch[name][:, :limit] for name in self.names}}
