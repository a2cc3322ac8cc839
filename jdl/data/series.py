"""Windows of time series."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, Source
from jdl.data.tables import are_numbers, numbers, pick_column, read_csv
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Series(Data):
    """Forecasts from the values before, of a CSV file with a row for each point in time.

    The last windows are held out, never random ones, and what scales the values is fitted on the
    training part alone. An example holds `x` (length, columns) and `y` (targets,), both scaled;
    and for `Forecast` to undo that, `value` (targets,) in the series' own unit with `offset`,
    `scale` (targets,) and `log` (): `value = f(offset + scale y)`, f the exponential where `log`.
    """

    path: str = field(kw_only=False)  # of the CSV file, whose first row names its columns
    columns: tuple[str, ...] = ()  # that are read; none given: all that hold numbers
    targets: tuple[str, ...] = ()  # that are forecast; none given: all that are read
    length: int = 20  # values before, from which a forecast is made
    horizon: int = 1  # steps from the last of them to the forecast
    log: bool = False  # take logarithms first
    difference: int = 0  # then subtract the value so many steps earlier; 0: do not
    ordered: bool = True  # hold out the end

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("length", 1), ("horizon", 1), ("difference", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} must be at least {least}, not {getattr(self, name)}")
        if not self.ordered:
            raise UserError("a series is held out in order: data.ordered must stay true")

    def splits(self) -> dict[str, Source]:
        """`train`, `validation` and `test`, one after the other.

        Raises:
          UserError: the file cannot be read, or is shorter than a window.
        """
        names, values = self.read()
        targets = [pick_column(self.path, names, name) for name in self.targets or names]
        lag, reach = self.difference, self.length + self.horizon
        count = len(values) - lag - reach + 1
        parts = self._parts(max(count, 0))
        if count < 1 or not all(len(part) for part in parts.values()):
            raise UserError(
                f"{self.path} has {len(values)} values, too few for splits "
                f"{', '.join(parts)} of windows of {lag + reach}"
            )
        levels = self._levels(values)
        changes = levels[lag:] - levels[: len(levels) - lag] if lag else levels
        # Everything up to the last value that training forecasts.
        known = changes[: parts["train"][-1] + reach]
        mean, spread = known.mean(0), np.maximum(known.std(0), 1e-12)
        scaled = ((changes - mean) / spread).astype(np.float32)
        offset = np.broadcast_to(mean, changes.shape) + (levels[: len(changes)] if lag else 0)

        def build(starts: np.ndarray) -> ArraySource:
            ends = starts + reach - 1
            windows = starts[:, None] + np.arange(self.length)
            return ArraySource(
                {
                    "x": scaled[windows],
                    "y": scaled[ends][:, targets],
                    "value": values[ends + lag][:, targets].astype(np.float32),
                    "offset": offset[ends][:, targets].astype(np.float32),
                    "scale": np.tile(spread[targets].astype(np.float32), (len(starts), 1)),
                    "log": np.full(len(starts), self.log),
                }
            )

        return {name: build(starts) for name, starts in parts.items()}

    def read(self) -> tuple[list[str], np.ndarray]:
        """Names of the columns, and their values (points, columns) float64 in their own units."""
        header, rows = read_csv(self.path)
        texts = dict(zip(header, zip(*rows, strict=True), strict=True))
        names = list(self.columns) or [name for name in header if are_numbers(texts[name])]
        if not names:
            raise UserError(f"{self.path} has no column of numbers (it has {', '.join(header)})")
        for name in names:
            pick_column(self.path, header, name)
        return names, np.stack([numbers(self.path, name, texts[name]) for name in names], axis=1)

    def describe(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def _parts(self, count: int) -> dict[str, np.ndarray]:
        """The first indices of the windows of each split."""
        test = round(count * self.test_fraction)
        validation = round((count - test) * self.validation_fraction)
        cuts = [count - test - validation, count - test]
        found = dict(
            zip(("train", "validation", "test"), np.split(np.arange(count), cuts), strict=True)
        )
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        return {name: part for name, part in found.items() if fractions.get(name, 1)}

    def _levels(self, values: np.ndarray) -> np.ndarray:
        if not self.log:
            return values
        if values.min() <= 0:
            raise UserError(f"{self.path} holds {values.min():g}, which has no logarithm")
        return np.log(values)
