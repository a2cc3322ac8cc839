"""Weights of training examples under which class and group are independent."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jdl.data.base import Data
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source, read_array, read_examples
from jdl.errors import UserError

WEIGHT = "weight"
"""Name of the array of weights."""


@dataclass(frozen=True, kw_only=True)
class Reweighed(Data):
    """A data set whose training examples have weights, the array `weight`, float32.

    Those of group g and class y have P(g) P(y) / P(g, y), so that in the weighted training split
    the class does not depend on the group (Kamiran and Calders, 2012). Other splits have weights of
    1. A task uses them with `example_weights="weight"`; no group is needed to predict.
    """

    data: Data = field(kw_only=False)  # the set; its splits and transforms stay
    group: str | tuple[str, ...] = "group"  # names of the arrays of groups; of several, all pairs
    target: str = ""  # name of the array of classes; empty: that of the data set

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.transforms or self.data.device_transforms:
            raise UserError(
                "data.transforms of a Reweighed are its own: move those of the data set that it "
                "wraps there"
            )

    @property
    def array_names(self) -> tuple[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Data.array_names`."""
        return self.data.array_names

    def splits(self) -> dict[str, Source]:
        """Returns the splits with weights.

        Raises:
          UserError: the examples have no such group or class.
        """
        found = self.fitted_wrapped.splits()
        weights = {name: np.ones(len(source), np.float32) for name, source in found.items()}
        weights["train"] = self._weights(found["train"])
        return {name: Weighted(source, weights[name]) for name, source in found.items()}

    def convert(self, source: Source) -> Source:
        """See `Data.convert`: weights of 1."""
        return Weighted(source, np.ones(len(source), np.float32))

    def reader(self) -> Reader:
        """Delegates to `data`."""
        return self.fitted_wrapped.reader()

    def _weights(self, train: Source) -> np.ndarray:
        groups = (self.group,) if isinstance(self.group, str) else self.group
        target = self.target or self.data.array_names[1]
        codes = []
        for name in (*groups, target):
            values = read_array(train, name)
            if values is None or values.ndim != 1:
                raise UserError(
                    f"{self.full_name()} has no array {name!r} with one value of each example: "
                    f"keep the column with data.keep, and name it in Reweighed.group"
                )
            codes.append(np.unique(values, return_inverse=True)[1])
        cell = np.unique(np.stack(codes, 1), axis=0, return_inverse=True)[1].ravel()
        group = np.unique(np.stack(codes[:-1], 1), axis=0, return_inverse=True)[1].ravel()
        shares = [np.bincount(each)[each] / len(each) for each in (group, codes[-1], cell)]
        return (shares[0] * shares[1] / shares[2]).astype(np.float32)


@dataclass(frozen=True)
class Weighted:
    """A source whose examples have a weight."""

    source: Source
    weights: np.ndarray  # (n,) float32

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.weights)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`."""
        return {**self.source[index], WEIGHT: self.weights[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once."""
        examples = zip(read_examples(self.source, indices), indices, strict=True)
        return [{**example, WEIGHT: self.weights[i]} for example, i in examples]
