"""Rows with time stamps on a regular grid: gaps, duplicates and disorder."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jdl.data.columns import Categories, Column, ColumnReader, Numbers, read_typed
from jdl.data.files import most_rows
from jdl.data.notation import Notation
from jdl.errors import UserError

Duplicates = Literal["error", "first", "last", "mean"]

TOLERANCE = 0.02
"""A time stamp is on the grid if it is this part of a step away from it, or less."""


@dataclass(frozen=True)
class TimeSeries:
    """One series on a regular grid.

    Attributes:
      name: of the series.
      start: the first step, counted from the first of all series.
      values: numbers by column, (steps, columns) float64; NaN: no row, or no value.
      row: a row of the file that belongs to it.
    """

    name: str
    start: int
    values: np.ndarray
    row: int


@dataclass(frozen=True)
class TimeGrid:
    """Series that share a grid of times.

    Attributes:
      series: in the order of their names.
      origin: time of step 0: days since 1970, or a number.
      step: between two steps, in the same unit.
    """

    series: tuple[TimeSeries, ...]
    origin: float
    step: float


def read_columns_by_time(
    path: str | Path,
    numbers: Sequence[str],
    others: Mapping[str, Literal["category"] | None],
    time: str,
    notation: Notation,
    time_format: str = "",
    delimiter: str | None = None,
) -> tuple[dict[str, Column], np.ndarray]:
    """Returns columns of a CSV file, and the time of each row, (rows,) float64.

    Args:
      path: of the file.
      numbers: columns that must hold numbers, with gaps or without.
      others: further columns and their kind.
      time: column of dates (days since 1970) or numbers.
      notation: how numbers are written.
      time_format: of the dates, as for `strptime`; empty: ISO 8601.
      delimiter: between fields.

    Raises:
      UserError: a column is missing, or a field of the wrong kind.
    """
    rows = most_rows(path)

    def reader(name: str, kind: Literal["number", "category"] | None, exact: bool) -> ColumnReader:
        return ColumnReader(f"{path}: column {name!r}", notation, rows, kind=kind, exact=exact)

    readers = {name: reader(name, "number", True) for name in numbers}
    readers |= {name: reader(name, kind, False) for name, kind in others.items()}
    readers[time] = reader(time, "category" if time_format else None, True)
    columns = read_typed(path, readers, delimiter)
    if gap := readers[time].first_missing:
        raise UserError(f"{path}: column {time!r} has no time in row {gap[0]}: remove the row")
    found = columns.pop(time)
    if isinstance(found, Categories):
        return columns, _parsed(path, time, found, time_format)
    return columns, found.exact()


def to_grid(
    path: str | Path,
    times: np.ndarray,
    values: np.ndarray,
    series: Categories | None,
    duplicates: Duplicates = "error",
    step: float | None = None,
) -> TimeGrid:
    """Puts the rows of each series on the grid that most of their times are on.

    Args:
      path: for messages.
      times: (rows,).
      values: (rows, columns) float64.
      series: the series of each row; None: all rows are one.
      duplicates: what rows of one time become unless they are equal.
      step: between two steps; None: the most frequent difference.

    Raises:
      UserError: times go back, differ from the grid, or repeat with other values.
    """
    codes = np.zeros(len(times), int) if series is None else series.codes
    names = ("",) if series is None else series.names
    parts = [np.flatnonzero(codes == code) for code in range(len(names))]
    for name, rows in zip(names, parts, strict=True):
        back = np.flatnonzero(np.diff(times[rows]) < 0)
        if back.size:
            whose = f" of series {name!r}" if name else ""
            raise UserError(
                f"{path}: row {rows[back[0] + 1] + 1}{whose} goes back in time: sort the rows by "
                f"time, and name the column that tells several series apart in data.series"
            )
    if step is None:
        steps = np.concatenate([np.diff(times[rows]) for rows in parts])
        steps = np.round(steps[steps > 0], 9)
        if not steps.size:
            raise UserError(f"{path} has one time in each series, of which nothing can be forecast")
        each, counts = np.unique(steps, return_counts=True)
        step = float(each[counts.argmax()])
    origin = float(times.min())
    found = [
        _regular(path, name, rows, (times[rows] - origin) / step, values[rows], duplicates)
        for name, rows in zip(names, parts, strict=True)
    ]
    return TimeGrid(tuple(found), origin, step)


def _regular(
    path: str | Path,
    name: str,
    rows: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    duplicates: Duplicates,
) -> TimeSeries:
    """Returns a series whose rows are at `places`, counted in steps."""
    steps = np.rint(places).astype(int)
    off = np.flatnonzero(np.abs(places - steps) > TOLERANCE)
    if off.size:
        raise UserError(
            f"{path}: row {rows[off[0]] + 1} is {places[off[0]] - steps[off[0]]:+.2g} steps off "
            f"the grid of the other times: resample the series to equal steps"
        )
    for place in np.flatnonzero(np.diff(steps) == 0):
        if duplicates == "error" and not np.array_equal(
            values[place], values[place + 1], equal_nan=True
        ):
            raise UserError(
                f"{path}: rows {rows[place] + 1} and {rows[place + 1] + 1} have the same time and "
                f"other values: remove one, or set data.duplicates to 'first', 'last' or 'mean'"
            )
    if duplicates == "mean":
        begins = np.flatnonzero(np.r_[True, np.diff(steps) > 0])
        values = np.stack([_mean(each) for each in np.split(values, begins[1:])])
        steps = steps[begins]
    else:
        new = np.diff(steps) > 0
        keep = np.r_[new, True] if duplicates == "last" else np.r_[True, new]
        values, steps = values[keep], steps[keep]
    whole = np.full((steps[-1] - steps[0] + 1, values.shape[1]), np.nan)
    whole[steps - steps[0]] = values
    return TimeSeries(name, int(steps[0]), whole, int(rows[0]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over rows of what is not NaN, else NaN."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(0), known.sum(0)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _parsed(path: str | Path, name: str, column: Categories, form: str) -> np.ndarray:
    """Returns dates in some format as days since 1970."""
    start, days = datetime.datetime(1970, 1, 1), []
    for text in column.names:
        try:
            moment = datetime.datetime.strptime(text, form)
        except ValueError:
            row = int(np.argmax(column.codes == column.names.index(text))) + 1
            raise UserError(
                f"{path}: column {name!r} holds {text!r} in row {row}, which is not written as "
                f"data.time_format {form!r}"
            ) from None
        days.append((moment.replace(tzinfo=None) - start) / datetime.timedelta(days=1))
    return np.array(days)[column.codes]


def fill_forward(values: np.ndarray) -> np.ndarray:
    """Returns values (steps, columns) with the last known one in place of each NaN.

    The first known value stands before itself; a column without one is 0.
    """
    known = ~np.isnan(values)
    places = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), axis=0)
    first = np.where(known.any(0), known.argmax(0), 0)
    filled = np.take_along_axis(values, np.where(places < 0, first, places), 0)
    return np.nan_to_num(filled, nan=0.0)


def side_by_side(columns: Mapping[str, Column], names: Sequence[str]) -> np.ndarray:
    """Returns columns of numbers, (rows, names) float64."""
    found = []
    for name in names:
        column = columns[name]
        assert isinstance(column, Numbers)
        found.append(column.exact())
    return np.stack(found, 1)
