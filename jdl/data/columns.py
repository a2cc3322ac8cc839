"""Typed columns of CSV files: every row decides what a column holds."""

import datetime
import itertools
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jdl.data.files import column_index, csv_rows
from jdl.data.notation import (
    Notation,
    is_date,
    is_infinite,
    looks_like_date,
    looks_like_number,
    number_of,
)
from jdl.errors import UserError

CHUNK = 1024
"""Rows that are converted together: few enough to weigh nothing beside the arrays."""

OWN_PAGES = 1 << 20
"""Bytes of a column from which it is allocated apart; a process has some 65,000 such places."""

Kind = Literal["number", "category", "date"]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, as differences from `center`.

    It is 0 unless the numbers are much larger than their range, as timestamps are, of which float32
    would keep only the digits that they share.
    """

    values: np.ndarray  # (rows,) float32, or float64 if read exactly; NaN: missing
    center: float
    kind: Kind = "number"

    def exact(self) -> np.ndarray:
        """Returns the numbers themselves, (rows,) float64."""
        return np.add(self.values, self.center, dtype=np.float64)

    def rounded(self) -> np.ndarray:
        """Returns the numbers themselves, (rows,) float32."""
        found = np.empty(len(self.values), np.float32)
        # In double precision, block by block.
        return np.add(self.values, self.center, out=found, dtype=np.float64, casting="same_kind")


@dataclass(frozen=True)
class Categories:
    """A column of words."""

    codes: np.ndarray  # (rows,) int32, into `names`; -1: missing
    names: tuple[str, ...]  # sorted: by value if all are numbers
    kind: Kind = "category"

    def renumbered(self, names: Sequence[str]) -> "Categories":
        """Returns the column with codes into other names, to which its further ones are added."""
        known = dict.fromkeys((*names, *self.names))
        number = {name: code for code, name in enumerate(known)}
        places = np.array([*(number[name] for name in self.names), -1], np.int32)
        return Categories(places[self.codes], tuple(known))

    def check_known(self, place: str, names: Sequence[str]) -> None:
        """Raises a UserError for the first word that is none of the names."""
        for code, name in enumerate(self.names):
            if name not in names:
                row = int(np.argmax(self.codes == code)) + 1
                raise UserError(
                    f"{place} holds {name!r} in row {row}, which was not in the data that the run "
                    f"was trained on (it had {', '.join(map(repr, names))})"
                )

    def as_numbers(self) -> Numbers | None:
        """Returns the column as numbers, exactly, if all its words are."""
        values = [number_of(name) for name in self.names]
        if not values or None in values:
            return None
        return Numbers(np.array([*values, np.nan], np.float64)[self.codes], 0.0)


Column = Numbers | Categories


class ColumnReader:
    """Collects a column, chunk by chunk, in one array: pieces would scatter over the heap.

    Args:
      place: the file and the column, for messages.
      notation: how its fields are written.
      kind: what it must hold; None for what its first value is, which all others must be too.
      exact: keep float64.
      limit: most distinct words allowed; None for any number.
      remedy: what else the user can do about a value of another kind.
    """

    def __init__(
        self,
        place: str,
        notation: Notation,
        rows: int,
        *,
        kind: Kind | None = None,
        exact: bool = False,
        limit: int | None = None,
        remedy: str = "",
    ) -> None:
        self.place, self._notation, self._exact = place, notation, exact
        self._kind: Kind | None = kind
        self._declared, self._limit, self._remedy = kind == "category", limit, remedy
        self._is_coded = False
        self._codes: dict[str, int] = {}
        self._center: float | None = 0.0 if exact else None
        self._buffer = _allocate(rows, np.dtype(np.float64 if exact else np.float32))
        self._rows = 0
        self._zoned: bool | None = None
        self.first_missing: tuple[int, str] | None = None
        """Row and field of the first gap."""

    def add(self, texts: Sequence[str]) -> None:
        """Adds the next rows.

        Raises:
          UserError: a field is of another kind than those before.
        """
        values = self._plain_numbers(texts)
        if values is None:
            values = np.fromiter(
                map(self._value, texts, range(self._rows + 1, self._rows + len(texts) + 1)),
                np.float64,
                len(texts),
            )
        if self._kind == "category":
            codes = self._buffer.view(np.int32)
            if not self._is_coded:  # what came before is missing
                self._is_coded = True
                codes[: self._rows] = -1
            codes[self._rows : self._rows + len(texts)] = np.where(np.isnan(values), -1, values)
        else:
            if self._center is None and not np.isnan(values).all():
                self._center = _far_center(values)
            values -= self._center or 0.0
            self._buffer[self._rows : self._rows + len(texts)] = values
        self._rows += len(texts)

    def finish(self) -> Column:
        """Returns the column.

        Raises:
          UserError: no row has a value.
        """
        if self._kind is None:
            raise UserError(f"{self.place} has no value in any row: leave the column out")
        if not self._is_coded:
            return Numbers(self._buffer[: self._rows], self._center or 0.0, self._kind)
        names = sorted(self._codes, key=self._order())
        place = np.empty(len(names) + 1, np.int32)
        place[-1] = -1  # the code of what is missing
        place[[self._codes[name] for name in names]] = np.arange(len(names))
        return Categories(place[self._buffer.view(np.int32)[: self._rows]], tuple(names))

    def _plain_numbers(self, texts: Sequence[str]) -> np.ndarray | None:
        """Returns numbers without gaps, the common case, at ten times the speed of `_value`."""
        if self._kind not in (None, "number") or not self._notation.is_plain:
            return None
        try:
            values = np.fromiter(map(float, texts), np.float64, len(texts))
        except ValueError:
            return None
        # A field such as `nan` or `-` may be missing, and only words can tell.
        if not np.isfinite(values).all() or self._float32_overflows(values):
            return None
        self._kind = "number"
        return values

    def _float32_overflows(self, values: np.ndarray | float) -> bool:
        return bool(np.any(np.abs(values) > 1e38))

    def _value(self, field: str, row: int) -> float:
        """Returns a number, days since 1970, or the code of a word; NaN where it is missing."""
        text = field.strip()
        if self._notation.is_missing(text):
            self.first_missing = self.first_missing or (row, text)
            return math.nan
        if self._kind == "category":
            return self._code(text, row)
        if self._kind is None:
            self._kind = self._guess(text)
            if self._kind == "category":
                return self._code(text, row)
        try:
            value = self._notation.number(text) if self._kind == "number" else self._days(text)
        except (ValueError, OverflowError):
            raise UserError(self._wrong(text, row, f"no {self._kind}")) from None
        if value in self._notation.missing_numbers:
            self.first_missing = self.first_missing or (row, text)
            return math.nan
        if self._float32_overflows(value):
            raise UserError(self._wrong(text, row, "too large for float32"))
        return value

    def _guess(self, text: str) -> Kind:
        if self._is_number(text):
            return "number"
        return "date" if is_date(text) else "category"

    def _is_number(self, text: str) -> bool:
        try:
            self._notation.number(text)
        except ValueError:
            return False
        return True

    def _code(self, text: str, row: int) -> float:
        if re.fullmatch(r"[-+]?\d+\.0+", text):  # as pandas writes integers beside missing ones
            text = text.partition(".")[0]
        if text not in self._codes:
            self._check_word(text, row)
            self._codes[text] = len(self._codes)
            if self._limit is not None and len(self._codes) > self._limit:
                raise UserError(
                    f"{self.place} holds more than data.max_categories = {self._limit} different "
                    f"words by row {row} ({_short(text)}): raise that, name the inputs in "
                    f"data.columns, or list the column in data.keep to carry it along"
                )
        return self._codes[text]

    def _check_word(self, text: str, row: int) -> None:
        """Raises a UserError for what is no word, unless the column was declared."""
        if self._declared:
            return
        if self._is_number(text) or is_date(text):
            raise UserError(
                self._wrong(text, row, f"among words such as {next(iter(self._codes))!r}")
            )
        if is_infinite(text):
            raise UserError(self._wrong(text, row, "no finite number"))
        if looks_like_date(text):
            what = "which may be a date or a time (those are YYYY-MM-DD or YYYY-MM-DD HH:MM)"
            raise UserError(self._wrong(text, row, what))
        if looks_like_number(text):
            what = "no number (data.decimal and data.thousands say how numbers are written)"
            raise UserError(self._wrong(text, row, what))

    def _days(self, text: str) -> float:
        if not is_date(text):
            raise ValueError(text)
        moment = datetime.datetime.fromisoformat(text.replace(",", "."))
        zoned = moment.tzinfo is not None
        if self._zoned not in (None, zoned):
            raise ValueError(text)  # no one offset holds for all rows
        self._zoned = zoned
        start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC if zoned else None)
        return (moment - start) / datetime.timedelta(days=1)

    def _wrong(self, text: str, row: int, what: str) -> str:
        others = f", or list it in data.missing{self._remedy}"
        return f"{self.place} holds {_short(text)} in row {row}, {what}: correct it{others}"

    def _order(self):
        numeric = all(map(self._is_number, self._codes))
        return (lambda name: (self._notation.number(name), name)) if numeric else None


def _allocate(count: int, dtype: np.dtype) -> np.ndarray:
    """Returns an array (count,) to be written to."""
    size = count * dtype.itemsize
    # Pages of its own go back to the system with the column, whatever the allocator keeps.
    return np.empty(count, dtype) if size < OWN_PAGES else np.frombuffer(mmap.mmap(-1, size), dtype)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _far_center(values: np.ndarray) -> float:
    """Returns the median of values that are far from 0 for their range, else 0."""
    middle, spread = float(np.nanmedian(values)), float(np.nanmax(values) - np.nanmin(values))
    return middle if abs(middle) > 64 * spread else 0.0


def read_typed(
    path: str | Path, readers: Mapping[str, ColumnReader], delimiter: str | None = None
) -> dict[str, Column]:
    """Reads columns of a CSV file, a few thousand rows at a time.

    Raises:
      UserError: a column is missing, or a reader refuses a field.
    """
    rows = csv_rows(path, delimiter, skip_blanks=True)
    header = next(rows)[1]
    known = {name: place for place, name in enumerate(header)}
    places = [
        known[name] if name in known else column_index(path, header, name) for name in readers
    ]
    while chunk := [row for _, row in itertools.islice(rows, CHUNK)]:
        columns = list(zip(*chunk, strict=True))
        for place, reader in zip(places, readers.values(), strict=True):
            reader.add(columns[place])
    return {name: reader.finish() for name, reader in readers.items()}
