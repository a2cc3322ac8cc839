"""The base class of attribution methods, and what one is asked to explain."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jdl.explain.subject import Inputs, Rows, Subject
from jdl.typing import Key, PyTree

Array = jax.Array

ELEMENTS = 1 << 19
"""Numbers of the inputs that are evaluated at once, so that memory does not grow with the steps."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be explained: a scalar at some rows.

    Attributes:
      subject: the scalar.
      params: of the model, its own or others.
      x: the inputs, (rows, ...) each.
      rows: the other arrays of the rows.
      features: by input the feature that each element belongs to, counted over all inputs; arrays
        that broadcast to an example.
      reference: returns the inputs of training examples, (examples, ...) each, for baselines;
        None: there are none.
      key: of what is drawn.
    """

    subject: Subject
    params: PyTree
    x: Inputs
    rows: Rows
    features: Mapping[str, np.ndarray]
    reference: Callable[[], Inputs] | None = None
    key: Key = dataclasses.field(default_factory=lambda: jax.random.key(0))

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows["batch"]["mask"])

    @property
    def num_features(self) -> int:
        """Number of features of all inputs."""
        return 1 + max(int(ids.max()) for ids in self.features.values())

    def scores(self, x: Inputs | None = None) -> np.ndarray:
        """Returns the scalar of each row, (rows,) float32, of other inputs if they are given."""
        asked = self if x is None else dataclasses.replace(self, x=x)
        return asked.by_parts(
            lambda part: np.asarray(part.subject.value(part.params, part.x, part.rows))
        )

    def take(self, indices: np.ndarray) -> "Request":
        """Returns the request about some of the rows."""
        x, rows = jax.tree.map(lambda leaf: leaf[indices], (self.x, self.rows))
        return dataclasses.replace(self, x=x, rows=rows)

    def points(self, total: int) -> int:
        """Returns how many of `total` points are evaluated at once: a power of two."""
        size = sum(leaf[0].size for leaf in jax.tree.leaves(self.x))
        most = 1 << max(0, (ELEMENTS // max(1, size)).bit_length() - 1)
        return min(most, 1 << max(0, total - 1).bit_length())

    def pairs(
        self, copies: int, rows: np.ndarray | None = None, points: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yields points to evaluate together: row and copy of each, and how many are no padding.

        Each copy of each row is a point. All chunks have one size, so that one program serves all.

        Args:
          copies: of each row.
          rows: indices of the rows; None: all.
          points: size of a chunk; None: as large as `points` says.
        """
        rows = np.arange(self.count) if rows is None else rows
        total = copies * len(rows)
        points = self.points(total) if points is None else points
        for begin in range(0, total, points):
            place = np.minimum(np.arange(begin, begin + points), total - 1)
            yield rows[place % len(rows)], place // len(rows), min(points, total - begin)

    def by_parts(self, function: Callable[["Request"], Any]) -> Any:
        """Returns what a function returns for the rows, for so many at once as memory is for."""
        found = []
        for index, _, fresh in self.pairs(1):
            part = function(self.take(index))
            found.append(jax.tree.map(lambda leaf, n=fresh: np.asarray(leaf)[:n], part))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attribution method: to each input of a row how it matters to the scalar."""

    is_local: ClassVar[bool] = False
    """Whether attributions are rates of change, as a gradient, and not parts of the scalar."""

    is_complete: ClassVar[bool] = False
    """Whether attributions should sum to the scalar's difference from its baseline."""

    is_finest: ClassVar[bool] = True
    """Whether each element has its own attribution, not that of a feature or a layer's cell."""

    def attribute(self, request: Request) -> Inputs:
        """Returns attributions, of each input an array that broadcasts to it.

        Raises:
          UserError: the method does not apply to the model.
        """
        raise NotImplementedError

    def baseline_scores(self, request: Request) -> np.ndarray | None:
        """Returns the scalar at the baseline, (rows,); None: the method has none."""
        del request
        return None


def taken(rows: Any, index: Array) -> Any:
    """Returns the rows of arrays at indices."""
    return jax.tree.map(lambda leaf: leaf[index], rows)


def column(values: Any, like: Any) -> Any:
    """Returns numbers (n,) as (n, 1, ...), to multiply an array (n, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
