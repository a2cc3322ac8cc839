"""Time series in windows."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, check_names
from jdl.data.columns import Column, ColumnReader, Kind, Numbers, read_typed
from jdl.data.features import fit_scale, scale
from jdl.data.files import column_index, most_rows, read_header
from jdl.data.log import warn_once
from jdl.data.notation import Notation
from jdl.data.public_files import locate, prepare_command
from jdl.data.readers import Reader
from jdl.data.sources import Source
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class Series(Data):
    """Forecasting from past values, of a CSV file with a row per time step.

    The last windows are held out, never random ones, and the scaling is fitted on the
    training part alone; a constant column is divided by its size, and inputs are limited to 100
    deviations. An example holds `x` (length, columns) and `y` (targets,), both scaled;
    and for `Forecast` to undo that, `value` (targets,) in the series' own unit with `offset`,
    `scale` (targets,) and `log` (): `value = f(offset + scale y)`, f the exponential where `log`.
    """

    path: str = field(kw_only=False)  # CSV file with a header, or the name of a prepared one
    columns: tuple[str, ...] = ()  # inputs; empty: all numeric ones
    targets: tuple[str, ...] = ()  # to forecast; empty: all inputs
    length: int = 20  # input time steps
    horizon: int = 1  # steps from the last input to the forecast
    log: bool = False  # take logarithms first
    difference: int = 0  # then subtract the value this many steps earlier; 0: off
    ordered: bool = True  # hold out the end
    decimal: str = "."  # mark before decimals
    thousands: str = ""  # mark between groups of three digits
    delimiter: str | None = None  # between fields; None: , ; tab or |, as the first line has it

    locations = ("path",)
    array_names: ClassVar[tuple[str, str]] = ("x", "y")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("columns", "targets"):
            check_names(self, name)
        for name, least in (("length", 1), ("horizon", 1), ("difference", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} must be at least {least}, not {getattr(self, name)}")
        if 0 < self.difference < self.horizon:
            raise UserError(
                f"data.difference {self.difference} is less than data.horizon {self.horizon}: a "
                f"forecast would be added to a value that is not known yet"
            )
        if not self.ordered:
            raise UserError("a series is held out in order: data.ordered must stay true")

    def splits(self) -> dict[str, Source]:
        """Returns `train`, `validation` and `test`, in time order.

        Raises:
          UserError: the file cannot be read, or is shorter than a window.
        """
        names, values = self.read()
        targets = self._targets(names)
        lag, reach = self.difference, self.length + self.horizon
        parts = self._parts(len(values))
        levels, changes = self._changes(self.path, values)
        mean, spread = self._scale(changes, parts["train"], self.fitted_values)
        scaled = ((changes - mean) / spread).astype(np.float32)
        inputs = scale(changes, mean, spread)
        offset = np.broadcast_to(mean, changes.shape) + (levels[: len(changes)] if lag else 0)

        def build(starts: np.ndarray) -> ArraySource:
            ends = starts + reach - 1
            windows = starts[:, None] + np.arange(self.length)
            return ArraySource(
                {
                    "x": inputs[windows],
                    "y": scaled[ends][:, targets],
                    "value": values[ends + lag][:, targets].astype(np.float32),
                    "offset": offset[ends][:, targets].astype(np.float32),
                    "scale": np.tile(spread[targets].astype(np.float32), (len(starts), 1)),
                    "log": np.full(len(starts), self.log),
                }
            )

        return {name: build(starts) for name, starts in parts.items()}

    def reader(self) -> Reader:
        """Returns a reader of the last window of CSV files with the same columns.

        It scales as in training; the forecast is for `horizon` steps after the last row.
        """
        lag, ahead, fitted = self.difference, self.horizon, self.fitted()
        names = fitted["columns"]
        mean, spread = np.array(fitted["mean"]), np.array(fitted["divisor"])
        targets = self._targets(names)

        def read(path: Path) -> dict[str, np.ndarray]:
            known = self._matrix(path, names)
            if len(known) < lag + self.length:
                raise UserError(
                    f"{path} has {len(known)} values, where a forecast needs {lag + self.length}"
                )
            levels, changes = self._changes(path, known)
            offset = mean + (levels[len(changes) + ahead - 1] if lag else 0)
            window = scale(changes[-self.length :], mean, spread)
            return {
                "x": window[None],
                "offset": offset[None, targets].astype(np.float32),
                "scale": spread[None, targets].astype(np.float32),
                "log": np.full(1, self.log),
            }

        return read

    def fit(self) -> dict[str, Json]:
        """Returns `columns`, the names of the inputs, with their `mean` and `divisor`."""
        names, values = self.read()
        train = self._parts(len(values))["train"]
        mean, divisor = self._scale(self._changes(self.path, values)[1], train, None)
        return {"columns": names, "mean": mean.tolist(), "divisor": divisor.tolist()}

    def example_names(self, path: Path) -> dict[str, list[Json]]:
        """See `Data.example_names`: the whole file is one example."""
        del path
        return {}

    def output_names(self) -> tuple[str, ...]:
        """Names of the target columns."""
        return self.targets or tuple(self.fitted()["columns"])

    def read(self) -> tuple[list[str], np.ndarray]:
        """Returns column names, and unscaled values (points, columns) float64.

        Raises:
          UserError: a column is missing, holds no numbers or has a gap, or dates are not in order.
        """
        names, path = list(self.columns), locate(self.path)
        if names:
            return names, self._matrix(path, names)
        columns, readers = self._columns(path, read_header(path, self.delimiter))
        names = [name for name, column in columns.items() if column.kind == "number"]
        if not names:
            raise UserError(f"{self.path} has no column of numbers (it has {', '.join(columns)})")
        _check_times(self.path, columns)
        return names, self._filled(columns, readers, names)

    def _matrix(self, path: str | Path, names: list[str]) -> np.ndarray:
        """Returns some columns; the first of the file is checked if it holds times."""
        first = read_header(path, self.delimiter)[0]
        if first not in names:
            columns: dict[str, Column] = {}
            with contextlib.suppress(UserError):  # what is no input may hold anything
                columns, _ = self._columns(path, [first])
            _check_times(path, columns)
        return self._filled(*self._columns(path, names, "number"), names)

    def _columns(
        self, path: str | Path, names: list[str], kind: Kind | None = None
    ) -> tuple[dict[str, Column], dict[str, ColumnReader]]:
        notation = Notation(decimal=self.decimal, thousands=self.thousands)
        rows, remedy = most_rows(path), ", or name the inputs in data.columns"
        readers = {
            name: ColumnReader(
                f"{path}: column {name!r}", notation, rows, kind=kind, exact=True, remedy=remedy
            )
            for name in names
        }
        return read_typed(path, readers, self.delimiter), readers

    def _filled(
        self, columns: dict[str, Column], readers: dict[str, ColumnReader], names: list[str]
    ) -> np.ndarray:
        """Returns columns of numbers side by side, (rows, names) float64."""
        values = []
        for name in names:
            column = columns[name]
            assert isinstance(column, Numbers)
            if gap := readers[name].first_missing:
                raise UserError(
                    f"{readers[name].place} holds {gap[1]!r} in row {gap[0]}, no number: a series "
                    f"has no gaps: fill it, or remove the row"
                )
            values.append(column.exact())
        return np.stack(values, axis=1)

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def needs(self) -> str:
        """The command that brings the file, else its path."""
        return prepare_command(self.path)

    def _targets(self, names: list[str]) -> list[int]:
        """Returns the column indices of the targets."""
        return [column_index(self.path, names, name) for name in self.targets or names]

    def _parts(self, points: int) -> dict[str, np.ndarray]:
        """Returns the first indices of the windows of each split."""
        reach = self.difference + self.length + self.horizon
        count = max(points - reach + 1, 0)
        test = round(count * self.test_fraction)
        validation = round((count - test) * self.validation_fraction)
        cuts = [count - test - validation, count - test]
        found = dict(
            zip(("train", "validation", "test"), np.split(np.arange(count), cuts), strict=True)
        )
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        parts = {name: part for name, part in found.items() if fractions.get(name, 1)}
        if not all(len(part) for part in parts.values()):
            raise UserError(
                f"{self.path} has {points} values, too few for splits {', '.join(parts)} of "
                f"windows of {reach}"
            )
        return parts

    def _changes(self, path: str | Path, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values, or their logarithms, and the unscaled targets."""
        if self.log and values.min() <= 0:
            raise UserError(f"{path} holds {values.min():g}, which has no logarithm")
        levels, lag = np.log(values) if self.log else values, self.difference
        return levels, levels[lag:] - levels[: len(levels) - lag] if lag else levels

    def _scale(
        self, changes: np.ndarray, train: np.ndarray, fitted: Mapping[str, Json] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and divisor by column, up to the last training target, or as given."""
        if fitted is not None:
            return np.array(fitted["mean"]), np.array(fitted["divisor"])
        return fit_scale(changes[: train[-1] + self.length + self.horizon])


def _check_times(path: str | Path, columns: Mapping[str, Column]) -> None:
    """Warns of times that repeat or are missing, since rows are taken for equal steps.

    Raises:
      UserError: they go back.
    """
    for name, column in columns.items():
        if not (isinstance(column, Numbers) and column.kind == "date"):
            continue
        steps = np.diff(column.values)
        if (backwards := np.flatnonzero(steps < 0)).size:
            raise UserError(
                f"{path}: column {name!r} goes back in time at row {backwards[0] + 2}: sort the "
                f"rows by time, with one series in a file"
            )
        # Months and years differ in length, but by less than half of it.
        longest = 1.5 * np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
        odd = np.flatnonzero((steps == 0) | (steps > longest))
        if odd.size:
            warn_once(
                f"{path}: column {name!r} repeats a time or leaves some out at {len(odd)} rows, "
                f"first at row {odd[0] + 2}: rows are taken for equal steps, where data of Panel "
                f"puts them on a grid"
            )
