"""Tables and texts in files, read with errors that name the place."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, Source
from jdl.errors import UserError, first_line, nearest


def read_csv(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file; blank lines are left out.

    Raises:
      UserError: it cannot be read, is empty, or a row is longer or shorter than the header.
    """
    file = Path(path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{file} cannot be read: {reason}") from error
    if len(numbered) < 2:
        raise UserError(f"{file} holds no rows below a header")
    (_, header), *rows = numbered
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{file}, line {line}: {len(row)} fields, where the header has {len(header)}"
            )
    return header, [row for _, row in rows]


def pick_column(path: str | Path, header: Sequence[str], name: str) -> int:
    """The place of a column.

    Raises:
      UserError: there is none of this name; names the nearest.
    """
    if name not in header:
        known = ", ".join(map(repr, header))
        raise UserError(f"{path} has no column {name!r} (it has {known}){nearest(name, header)}")
    return header.index(name)


def numbers(path: str | Path, name: str, texts: Sequence[str]) -> np.ndarray:
    """A column as float64.

    Raises:
      UserError: a field is no finite number; names its row, the first below the header being 1.
    """
    values = np.empty(len(texts))
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise UserError(f"{path}: column {name!r} holds {text!r} in row {row + 1}, no number")
    return values


def are_numbers(texts: Sequence[str]) -> bool:
    """Whether the first of a column's fields is a number."""
    try:
        float(texts[0])
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Table(Data):
    """A CSV file with a row for each example: `x` (columns,) float32 and `y`.

    Inputs are brought to mean 0 and deviation 1, both fitted on the training part. A target of
    numbers is `y` () float32; one of words is the class, () int32, in the order of their names.
    """

    path: str = field(kw_only=False)  # of the file, whose first row names its columns
    target: str = field(kw_only=False)  # column to predict
    columns: tuple[str, ...] = ()  # inputs; none given: all others that hold numbers
    classes: bool | None = None  # the target is a class; None: where it holds words

    def load(self) -> dict[str, Source]:
        """One split, `train`, not yet scaled.

        Raises:
          UserError: the file cannot be read, a column is missing, or a field is no number.
        """
        header, rows = read_csv(self.path)
        texts = dict(zip(header, zip(*rows, strict=True), strict=True))
        pick_column(self.path, header, self.target)
        others = [name for name in header if name != self.target]
        names = list(self.columns) or [name for name in others if are_numbers(texts[name])]
        if not names:
            raise UserError(f"{self.path} has no column of numbers beside {self.target!r}")
        for name in names:
            pick_column(self.path, header, name)
        inputs = np.stack([numbers(self.path, name, texts[name]) for name in names], axis=1)
        return {"train": ArraySource({"x": inputs, "y": self._targets(texts[self.target])})}

    def splits(self) -> dict[str, Source]:
        """All splits, scaled alike."""
        parts = {name: _columns(source) for name, source in super().splits().items()}
        known = parts["train"]["x"]
        mean, spread = known.mean(0), known.std(0)
        spread = np.where(spread > 0, spread, 1)
        return {
            name: ArraySource({"x": ((part["x"] - mean) / spread).astype("f4"), "y": part["y"]})
            for name, part in parts.items()
        }

    def describe(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def _targets(self, texts: Sequence[str]) -> np.ndarray:
        for row, text in enumerate(texts, start=1):
            if not text:
                raise UserError(f"{self.path}: column {self.target!r} has no label in row {row}")
        words = not are_numbers(texts) if self.classes is None else self.classes
        if not words:
            return numbers(self.path, self.target, texts).astype(np.float32)
        return np.unique(texts, return_inverse=True)[1].astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class TextTable(Data):
    """A CSV file of texts, each with a label: `text` and `label`, as `Words` takes them.

    Labels are numbered in the order of their names.
    """

    path: str = field(kw_only=False)  # of the file, whose first row names its columns
    text: str = "text"  # column of texts
    label: str = "label"  # column of labels

    def load(self) -> dict[str, Source]:
        """One split, `train`.

        Raises:
          UserError: the file cannot be read, a column is missing, or a label.
        """
        header, rows = read_csv(self.path)
        text, label = (pick_column(self.path, header, name) for name in (self.text, self.label))
        for number, row in enumerate(rows, start=1):
            if not row[label]:
                raise UserError(f"{self.path}: column {self.label!r} has no label in row {number}")
        labels = np.unique([row[label] for row in rows], return_inverse=True)[1]
        texts = np.array([row[text] for row in rows], object)
        return {"train": ArraySource({"text": texts, "label": labels.astype(np.int32)})}

    def describe(self) -> str:
        """The file's name."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class TextFile(Data):
    """A long text in a file, as `Characters` takes it: its end is held out, `text` is a part."""

    path: str = field(kw_only=False)  # of the file, UTF-8
    test_fraction: float = 0.0  # of the characters, at the end; 0: no such split

    def load(self) -> dict[str, Source]:
        """`train`, and `validation` and `test` after it.

        Raises:
          UserError: the file cannot be read.
        """
        file = Path(self.path).expanduser()
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{file} cannot be read: {reason}") from error
        test = round(len(text) * self.test_fraction)
        validation = round((len(text) - test) * self.validation_fraction)
        cut, end = len(text) - test - validation, len(text) - test
        parts = {"train": text[:cut], "validation": text[cut:end], "test": text[end:]}
        return {
            name: ArraySource({"text": np.array([part], object)})
            for name, part in parts.items()
            if part
        }

    def describe(self) -> str:
        """The file's name."""
        return Path(self.path).name


def _columns(source: Source) -> dict[str, np.ndarray]:
    rows = [source[index] for index in range(len(source))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
