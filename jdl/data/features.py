"""How columns of a table become inputs: scaled, filled and one-hot, as fitted on training rows."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data.columns import Categories, Column, Kind
from jdl.errors import UserError

LIMIT = 100.0
"""Scaled inputs are at most this many standard deviations from the mean."""

CONSTANT = 1e-9
"""A column whose deviation is a smaller part of its size varies by rounding alone."""

BLOCK = 1 << 16
"""Rows that are scaled at once."""

_log = logging.getLogger(__name__)


def fit_scale(values: np.ndarray, offset: Any = 0.0) -> tuple[Any, Any]:
    """Returns the mean and the divisor of values along axis 0, both float64.

    The divisor is the standard deviation; for a constant column it is the column's size, or 1.

    Args:
      values: (n, ...), of which `offset` was subtracted.
      offset: what to add for the size; the mean returned is that of `values`.
    """
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    size = np.maximum(np.abs(values.min(0) + offset), np.abs(values.max(0) + offset))
    return mean, np.where(deviation > CONSTANT * size, deviation, np.where(size > 0, size, 1.0))


def scale(values: np.ndarray, mean: Any, divisor: Any) -> np.ndarray:
    """Returns `(values - mean) / divisor` within `LIMIT`, float32."""
    scaled = np.empty(values.shape, np.float32)
    for start in range(0, len(values), BLOCK):  # float64 for all rows would double the memory
        part = (values[start : start + BLOCK].astype(np.float64) - mean) / divisor
        scaled[start : start + BLOCK] = np.clip(part, -LIMIT, LIMIT)
    return scaled


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A column as one or several inputs, with what its training rows say about it.

    Numbers are scaled by mean and divisor. Where one is missing it is the median; if any was
    missing in training, a further input is 1 there. A word is one-hot among those of training,
    and an empty field one of them if training had it; other words are all zeros.
    """

    name: str
    kind: Kind
    mean: float = 0.0
    divisor: float = 1.0
    median: float = 0.0
    has_missing: bool = False  # in the training rows
    words: tuple[str, ...] = ()

    @classmethod
    def fit(cls, path: str, name: str, column: Column, rows: np.ndarray) -> "Feature":
        """Fits a column on its training rows.

        Raises:
          UserError: none of them has a value.
        """
        if isinstance(column, Categories):
            codes = column.codes[rows]
            words = tuple(column.names[code] for code in np.unique(codes[codes >= 0]))
            missing = bool((codes < 0).any())
            _check_any(path, name, bool(words))
            return cls(name=name, kind="category", words=words, has_missing=missing)
        known = values = column.values[rows]
        if np.isnan(values.min()):
            known = values[~np.isnan(values)]
        _check_any(path, name, bool(known.size))
        mean, divisor = fit_scale(known, column.center)
        return cls(
            name=name,
            kind=column.kind,
            mean=float(mean) + column.center,
            divisor=float(divisor),
            median=float(np.median(known)) + column.center,
            has_missing=known.size < values.size,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, such as `age`, `age missing`, `sex=female`."""
        missing = (f"{self.name} missing",) if self.has_missing else ()
        known = (f"{self.name}={word}" for word in self.words)
        return (*(known if self.kind == "category" else (self.name,)), *missing)

    def encode(self, column: Column) -> Iterator[np.ndarray]:
        """Yields the inputs of a column, (rows,) float32 each."""
        if isinstance(column, Categories):
            found = {name: code for code, name in enumerate(column.names)}
            for word in self.words:
                yield (column.codes == found.get(word, len(found))).astype(np.float32)
            missing = column.codes < 0
        else:
            missing, values = np.isnan(column.values), column.values
            if missing.any():
                values = np.where(missing, self.median - column.center, values)
            yield scale(values, self.mean - column.center, self.divisor)
        if self.has_missing:
            yield missing.astype(np.float32)

    def warn_of_unknown(self, path: Any, column: Column) -> None:
        """Logs what a new file has that no training row had."""
        said = []
        if isinstance(column, Categories):
            for word in sorted(set(column.names) - set(self.words)):
                row = int(np.argmax(column.codes == column.names.index(word))) + 1
                said.append(f"{word!r} in row {row}, which no training row has: its inputs are 0")
            missing = column.codes < 0
        else:
            missing = np.isnan(column.values)
            far = np.abs(column.exact() - self.mean) > LIMIT * self.divisor
            if far.any():
                row = int(np.argmax(far))
                value = float(column.exact()[row])
                said.append(
                    f"{value:g} in row {row + 1}, more than {LIMIT:g} standard deviations from "
                    f"training: it is limited to that"
                )
        if missing.any() and not self.has_missing:
            row = int(np.argmax(missing)) + 1
            instead = "its inputs are 0" if self.kind == "category" else "it is the median"
            said.append(f"no value in row {row}, where no training row lacks it: {instead}")
        for sentence in said:
            _log.warning("%s: column %r holds %s", path, self.name, sentence)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return {**dataclasses.asdict(self), "words": list(self.words)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Feature":
        """Returns the feature of `to_json`."""
        return cls(**{**fields, "words": tuple(fields["words"])})


def _check_any(path: str, name: str, any_known: bool) -> None:
    if not any_known:
        raise UserError(
            f"{path}: column {name!r} has no value in any training row: leave the column out, or "
            f"set data.split_seed"
        )


def encode_all(features: Sequence[Feature], columns: dict[str, Column]) -> np.ndarray:
    """Returns all inputs, (rows, inputs) float32, and takes the columns out of the dict."""
    return _filled(
        sum(len(feature.names) for feature in features),
        (values for feature in features for values in feature.encode(columns.pop(feature.name))),
    )


def stack_columns(columns: dict[str, Column]) -> np.ndarray:
    """Returns numbers as they are and words as ids, (rows, columns) float32; empties the dict."""

    def each() -> Iterator[np.ndarray]:
        for name in list(columns):
            column = columns.pop(name)
            yield column.codes if isinstance(column, Categories) else column.rounded()

    return _filled(len(columns), each())


def _filled(width: int, columns: Iterator[np.ndarray]) -> np.ndarray:
    """Returns columns side by side, each freed before the next is made.

    The array is in column order: in row order the first column would touch all of its pages, so
    that it would take its memory beside that of all columns.
    """
    first = next(columns)
    inputs = np.empty((width, len(first)), np.float32)
    inputs[0] = first
    for place, values in enumerate(columns, start=1):
        inputs[place] = values
    return inputs.T
