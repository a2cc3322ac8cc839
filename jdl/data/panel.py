"""Windows of one or several time series with covariates, for forecasts of a whole horizon."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jdl.data.base import Data, check_names
from jdl.data.columns import Categories, Column, Numbers
from jdl.data.features import Feature, encode_all, fit_scale, scale
from jdl.data.notation import Notation
from jdl.data.public_files import locate, prepare_command
from jdl.data.readers import Reader
from jdl.data.sources import Source
from jdl.data.time_grid import (
    Duplicates,
    TimeGrid,
    fill_forward,
    read_columns_by_time,
    side_by_side,
    to_grid,
)
from jdl.data.windows import Windows
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class Panel(Data):
    """Forecasting a whole horizon of one or several time series, from a CSV file with a row each.

    Times are put on a regular grid. Where a step or a value is missing, the last known one stands
    in, `past` says so, and `observed` leaves it out of losses and metrics. Each window is scaled by
    its own last value, `offset`, and deviation, `scale`: `value = offset + scale y`.

    An example holds the inputs `past` (length, channels): targets, whether they are observed,
    `past` and `future` covariates; `future` (horizon, channels); and `static` (channels,), to which
    the window's level and log deviation are added. It holds `y`, `value` and `observed` (horizon,
    targets), and `naive_error` (targets,), of the seasonal naive forecast in training, for MASE.
    """

    path: str = field(kw_only=False)  # CSV file with a header, or the name of a prepared one
    time: str = field(kw_only=False)  # column of times: dates, or numbers
    targets: tuple[str, ...] = field(kw_only=False)  # columns to forecast
    series: str | None = None  # column that names the series of a row; None: the file is one
    past: tuple[str, ...] = ()  # observed covariates: numbers known up to the present
    future: tuple[str, ...] = ()  # covariates known in advance, such as planned prices
    static: tuple[str, ...] = ()  # covariates that a series has once: numbers or words
    periods: tuple[float, ...] = ()  # in hours, of sines and cosines of time, known in advance
    length: int = 48  # input time steps
    horizon: int = 24  # time steps to forecast
    stride: int = 1  # steps between training windows
    season: int = 1  # steps that the seasonal naive forecast goes back
    fold: int = 0  # of `folds`: the test split is one `test_fraction` later for each
    folds: int = 1  # rolling origins, the last of which tests on the end
    end: str = ""  # ISO date from which rows are left out; empty: none
    duplicates: Duplicates = "error"  # which of several rows of one time is taken
    time_format: str = ""  # of `time`, as for strptime; empty: ISO 8601
    ordered: bool = True  # hold out the end
    missing: tuple[str, ...] | None = None  # fields without a value; None: "", NA, nan, ?, ...
    decimal: str = "."  # mark before decimals
    thousands: str = ""  # mark between groups of three digits
    delimiter: str | None = None  # between fields; None: , ; tab or |, as the first line has it

    locations = ("path",)
    array_names: ClassVar[tuple[str, str]] = ("past", "y")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("targets", "past", "future", "static"):
            check_names(self, name)
        roles = [*self.targets, *self.past, *self.future, *self.static, self.time]
        for name in roles:
            if roles.count(name) > 1:
                raise UserError(
                    f"column {name!r} has two roles among data.time, targets, past, future and "
                    f"static: take it out of one (targets are inputs of the past by themselves)"
                )
        if not self.targets:
            raise UserError("data.targets names no column to forecast")
        for name in ("length", "horizon", "stride", "season", "folds"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if self.length < self.season:
            raise UserError(
                f"data.length {self.length} is less than data.season {self.season}: a window must "
                f"hold a season"
            )
        if not 0 <= self.fold < self.folds:
            raise UserError(f"data.fold {self.fold} is not in 0 to {self.folds - 1}")
        if self.folds * self.test_fraction >= 1 or (self.folds > 1 and not self.test_fraction):
            raise UserError(
                f"data.folds {self.folds} test splits of data.test_fraction {self.test_fraction} "
                f"leave nothing to train on, or nothing to test: change one"
            )
        if any(period <= 0 for period in self.periods):
            raise UserError("data.periods holds hours above 0")
        if not self.ordered:
            raise UserError("a series is held out in order: data.ordered must stay true")

    def splits(self) -> dict[str, Source]:
        """Returns `train`, `validation` and `test`, in time order.

        Raises:
          UserError: the file cannot be read, has times that cannot be ordered, or is too short.
        """
        grid, columns = self._read(locate(self.path))
        cuts = self._cuts(grid)
        arrays = self._arrays(grid, columns, self.fitted_values or self._fit(grid, columns))
        found: dict[str, Source] = {}
        for name, (low, high) in cuts.items():
            source = self._windows(grid, arrays, low, high, self.stride if name == "train" else 1)
            if not len(source):
                raise UserError(
                    f"{self.path} has no window of {self.length} + {self.horizon} steps in split "
                    f"{name!r} (steps {low} to {high} of {_span(grid)}): shorten data.length or "
                    f"data.horizon, or change the fractions"
                )
            found[name] = source
        return found

    def fit(self) -> dict[str, Json]:
        """Returns the grid's step, scales and words, as fitted on the training part."""
        return self._fit(*self._read(locate(self.path)))

    def reader(self) -> Reader:
        """Returns a reader of the last window of each series in CSV files of the same columns.

        Rows after the last one with a target give the `future` covariates of the horizon.
        """
        fitted = self.fitted()
        features = [Feature.from_json(fields) for fields in fitted["static"]]

        def read(path: Path) -> dict[str, np.ndarray]:
            grid, columns = self._read(path, fitted["step"], features)
            return self._latest(path, grid, columns, fitted)

        return read

    def example_names(self, path: Path) -> dict[str, list[Json]]:
        """See `Data.example_names`: the name of each series."""
        if not self.series:
            return {}
        grid, _ = self._read(path, self.fitted()["step"])
        return {"series": [each.name for each in grid.series]}

    def output_names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return self.targets

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def needs(self) -> str:
        """The command that brings the file, else its path."""
        return prepare_command(self.path)

    def _read(
        self, path: str | Path, step: float | None = None, features: Sequence[Feature] = ()
    ) -> tuple[TimeGrid, dict[str, Column]]:
        """Returns the series on their grid, and the static columns, a row for each series.

        Args:
          path: of the file.
          step: of the grid; None: that of most rows.
          features: static columns, as fitted, of which words that training lacks are named.
        """
        numbers = [*self.targets, *self.past, *self.future]
        others: dict[str, Any] = dict.fromkeys(self.static)
        if self.series:
            others[self.series] = "category"
        notation = Notation(missing=self.missing, decimal=self.decimal, thousands=self.thousands)
        columns, times = read_columns_by_time(
            path, numbers, others, self.time, notation, self.time_format, self.delimiter
        )
        for feature in features:
            feature.warn_of_unknown(path, columns[feature.name])
        names = columns[self.series] if self.series else None
        assert names is None or isinstance(names, Categories)
        if names is not None and (names.codes < 0).any():
            row = int(np.argmax(names.codes < 0)) + 1
            raise UserError(f"{path}: column {self.series!r} names no series in row {row}")
        values = side_by_side(columns, numbers)
        kept = times < self._end() if self.end else np.ones(len(times), bool)
        if not kept.all():
            times, values = times[kept], values[kept]
            columns = {name: _take(column, kept) for name, column in columns.items()}
            names = columns[self.series] if self.series else None
        if not len(times):
            raise UserError(f"{path} has no row before data.end {self.end!r}")
        self._check_leaks(path, values)
        assert names is None or isinstance(names, Categories)
        grid = to_grid(path, times, values, names, self.duplicates, step)
        for name in self.static:
            self._check_constant(path, name, columns[name], names)
        rows = np.array([series.row for series in grid.series])
        return grid, {name: _take(columns[name], rows) for name in self.static}

    def _end(self) -> float:
        try:
            moment = datetime.datetime.fromisoformat(self.end).replace(tzinfo=None)
        except ValueError:
            raise UserError(
                f"data.end must be a date such as '2016-11-01', not {self.end!r}"
            ) from None
        return (moment - datetime.datetime(1970, 1, 1)) / datetime.timedelta(days=1)

    def _check_leaks(self, path: str | Path, values: np.ndarray) -> None:
        """Raises a UserError if a column that is said to be known in advance is a target."""
        first = len(self.targets) + len(self.past)
        for place, name in enumerate(self.future, start=first):
            for target, target_name in enumerate(self.targets):
                both = values[:, [place, target]]
                both = both[~np.isnan(both).any(1)]
                if len(both) < 20 or not both.std(0).all():
                    continue
                if abs(np.corrcoef(both.T)[0, 1]) > 0.99999:
                    raise UserError(
                        f"{path}: column {name!r} in data.future is the target {target_name!r} in "
                        f"another unit, which is not known in advance: take it out"
                    )

    def _check_constant(
        self, path: str | Path, name: str, column: Column, series: Categories | None
    ) -> None:
        values = column.codes if isinstance(column, Categories) else np.nan_to_num(column.values)
        codes = np.zeros(len(values), int) if series is None else series.codes
        order = np.argsort(codes, kind="stable")
        changed = (np.diff(codes[order]) == 0) & (np.diff(values[order]) != 0)
        if changed.any():
            row = int(order[np.argmax(changed) + 1]) + 1
            raise UserError(
                f"{path}: column {name!r} in data.static changes within a series in row {row}: "
                f"list it in data.past or data.future"
            )

    def _cuts(self, grid: TimeGrid) -> dict[str, tuple[int, int]]:
        """Returns the first step of each split, and the step that it ends before."""
        count = _span(grid)
        size = round(count * self.test_fraction)
        high = count - size * (self.folds - 1 - self.fold)
        low = high - size
        first = low - round(low * self.validation_fraction)
        cuts = {"train": (0, first), "validation": (first, low), "test": (low, high)}
        shares = {"validation": self.validation_fraction, "test": self.test_fraction}
        return {name: cut for name, cut in cuts.items() if shares.get(name, 1)}

    def _fit(self, grid: TimeGrid, columns: Mapping[str, Column]) -> dict[str, Json]:
        cut = self._cuts(grid)["train"][1]
        parts = [series.values[: max(cut - series.start, 0)] for series in grid.series]
        values = np.concatenate(parts)
        kept = np.flatnonzero([len(part) > 0 for part in parts])
        count = len(self.targets)
        fitted = []
        for place, name in enumerate([*self.targets, *self.past, *self.future]):
            known = values[:, place][~np.isnan(values[:, place])]
            if not known.size:
                raise UserError(f"{self.path}: column {name!r} has no value in the training part")
            fitted.append(fit_scale(known))
        errors = [_naive_error(part[:, :count], self.season) for part in parts]
        whole = np.nanmean(errors, 0) if np.isfinite(errors).any() else np.ones(count)
        whole = np.where(whole > 0, whole, 1.0)
        naive = np.where(np.isfinite(errors) & (np.array(errors) > 0), errors, whole)
        static = [Feature.fit(self.path, name, columns[name], kept) for name in self.static]
        return {
            "classes": list(self.targets),
            "step": grid.step,
            "mean": [float(mean) for mean, _ in fitted],
            "divisor": [float(divisor) for _, divisor in fitted],
            "naive": naive.tolist(),
            "static": [feature.to_json() for feature in static],
        }

    def _arrays(
        self, grid: TimeGrid, columns: Mapping[str, Column], fitted: Mapping[str, Json]
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of `Windows`."""
        count, middle = len(self.targets), len(self.targets) + len(self.past)
        mean, divisor = np.array(fitted["mean"]), np.array(fitted["divisor"])
        values = np.concatenate([series.values for series in grid.series])
        filled = np.concatenate([fill_forward(series.values) for series in grid.series])
        scaled = scale(filled, mean, divisor)
        steps = [series.start + np.arange(len(series.values)) for series in grid.series]
        hours = (grid.origin + grid.step * np.concatenate(steps)) * 24
        waves = [f(2 * np.pi * hours / each) for each in self.periods for f in (np.sin, np.cos)]
        features = [Feature.from_json(fields) for fields in fitted["static"]]
        static = np.zeros((len(grid.series), 0), np.float32)
        return {
            "raw": values[:, :count],
            "filled": filled[:, :count],
            "past": scaled[:, count:middle],
            "future": np.column_stack([scaled[:, middle:], *waves]).astype(np.float32),
            "static": encode_all(features, dict(columns)) if features else static,
            "mean": mean[:count],
            "divisor": divisor[:count],
            "naive": np.array(fitted["naive"]),
        }

    def _windows(
        self, grid: TimeGrid, arrays: Mapping[str, np.ndarray], low: int, high: int, stride: int
    ) -> Windows:
        """Returns the windows whose horizon is in the steps from `low` until `high`."""
        starts, series, first = [], [], 0
        for index, each in enumerate(grid.series):
            begin = max(low - each.start - self.length, 0)
            last = min(high - each.start, len(each.values)) - self.length - self.horizon
            # The last window is kept, so that training always sees the most recent values.
            found = np.arange(last, begin - 1, -stride)[::-1]
            known = ~np.isnan(each.values[:, : len(self.targets)]).all(1)
            total = np.concatenate([[0], np.cumsum(known)])
            after = found + self.length
            seen = (total[after] > total[found]) & (total[after + self.horizon] > total[after])
            starts.append(first + found[seen])
            series.append(np.full(int(seen.sum()), index))
            first += len(each.values)
        return Windows(
            arrays, np.concatenate(starts), np.concatenate(series), self.length, self.horizon
        )

    def _latest(
        self,
        path: Path,
        grid: TimeGrid,
        columns: Mapping[str, Column],
        fitted: Mapping[str, Json],
    ) -> dict[str, np.ndarray]:
        """Returns the inputs of the window after which each series is to be forecast."""
        count, starts, first, longer = len(self.targets), [], 0, []
        for each in grid.series:
            known = np.flatnonzero(~np.isnan(each.values[:, :count]).all(1))
            whose = f"series {each.name!r} of {path}" if each.name else str(path)
            present = int(known[-1]) + 1 if known.size else 0
            if present < self.length:
                raise UserError(f"{whose} has {present} steps, a forecast needs {self.length}")
            missing = present + self.horizon - len(each.values)
            if self.future and missing > 0:
                raise UserError(
                    f"{whose} lacks {', '.join(self.future)} for the last {missing} of "
                    f"{self.horizon} steps after the last value: add rows with an empty target"
                )
            pad = np.full((max(missing, 0), each.values.shape[1]), np.nan)
            values = np.concatenate([each.values, pad])
            longer.append(type(each)(each.name, each.start, values, each.row))
            starts.append(first + present - self.length)
            first += len(values)
        series = np.arange(len(starts))
        arrays = self._arrays(TimeGrid(tuple(longer), grid.origin, grid.step), columns, fitted)
        windows = Windows(arrays, np.array(starts), series, self.length, self.horizon)
        return windows.inputs(series)


def _span(grid: TimeGrid) -> int:
    """Returns the number of steps from the first to the last."""
    return max(series.start + len(series.values) for series in grid.series)


def _naive_error(values: np.ndarray, season: int) -> np.ndarray:
    """Returns the mean absolute error of the value a season before, (targets,)."""
    if len(values) <= season:
        return np.full(values.shape[1], np.nan)
    error = np.abs(values[season:] - values[:-season])
    known = ~np.isnan(error)
    total = np.where(known, error, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _take(column: Column, rows: np.ndarray) -> Column:
    """Returns some rows of a column."""
    if isinstance(column, Categories):
        return Categories(column.codes[rows], column.names)
    return Numbers(column.values[rows], column.center, column.kind)
