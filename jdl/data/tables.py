"""Tables and texts in files, with errors that name the location."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, Reader, Source
from jdl.data.files import (
    column_index,
    is_numeric,
    parse_matrix,
    parse_numbers,
    read_columns,
    read_text,
    read_texts,
)
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Table(Data):
    """A CSV file with a row per example: `x` (columns,) float32 and `y`.

    Inputs are standardized to mean 0 and deviation 1, fitted on the training split. A target of
    numbers is `y` () float32; one of words is the class, () int32, in the order of their names.
    """

    path: str = field(kw_only=False)  # CSV file whose first row names its columns
    target: str = field(kw_only=False)  # column to predict
    columns: tuple[str, ...] = ()  # inputs; empty: all other numeric ones
    categorical: bool | None = None  # the target is a class; None: if not numeric

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`, unscaled.

        Raises:
          UserError: the file cannot be read, a column is missing, or a field is not a number.
        """
        texts = read_columns(self.path)
        column_index(self.path, list(texts), self.target)
        inputs = parse_matrix(self.path, texts, self._inputs(texts))
        return {"train": ArraySource({"x": inputs, "y": self._targets(texts[self.target])})}

    def splits(self) -> dict[str, Source]:
        """Returns all splits, scaled alike."""
        parts = {name: _columns(source) for name, source in super().splits().items()}
        mean, spread = _fitted(parts["train"]["x"])
        return {
            name: ArraySource({"x": ((part["x"] - mean) / spread).astype("f4"), "y": part["y"]})
            for name, part in parts.items()
        }

    def reader(self) -> Reader:
        """Returns a reader of CSV files with the input columns, scaled as in training."""
        names = self._inputs(read_columns(self.path))
        mean, spread = _fitted(_columns(super().splits()["train"])["x"])

        def read(path: Path) -> dict[str, np.ndarray]:
            inputs = parse_matrix(path, read_columns(path), names)
            return {"x": ((inputs - mean) / spread).astype("f4")}

        return read

    def output_names(self) -> tuple[str, ...]:
        """Class names, if the target is a class."""
        texts = read_columns(self.path)[self.target]
        return tuple(sorted(set(texts))) if self._words(texts) else ()

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def _inputs(self, texts: dict[str, tuple[str, ...]]) -> list[str]:
        others = [name for name in texts if name != self.target]
        names = list(self.columns) or [name for name in others if is_numeric(texts[name])]
        if not names:
            raise UserError(f"{self.path} has no column of numbers beside {self.target!r}")
        return names

    def _targets(self, texts: Sequence[str]) -> np.ndarray:
        for row, text in enumerate(texts, start=1):
            if not text:
                raise UserError(f"{self.path}: column {self.target!r} has no label in row {row}")
        if not self._words(texts):
            return parse_numbers(self.path, self.target, texts).astype(np.float32)
        return np.unique(texts, return_inverse=True)[1].astype(np.int32)

    def _words(self, texts: Sequence[str]) -> bool:
        return not is_numeric(texts) if self.categorical is None else self.categorical


@dataclass(frozen=True, kw_only=True)
class TextTable(Data):
    """A CSV file of labeled texts: `text` and `label`, as for `Words`.

    Labels are ids of the sorted names.
    """

    path: str = field(kw_only=False)  # CSV file whose first row names its columns
    text_column: str = "text"  # column of texts
    label_column: str = "label"  # column of labels

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`.

        Raises:
          UserError: the file cannot be read, a column is missing, or a label.
        """
        columns = read_columns(self.path)
        for name in (self.text_column, self.label_column):
            column_index(self.path, list(columns), name)
        for number, label in enumerate(columns[self.label_column], start=1):
            if not label:
                raise UserError(
                    f"{self.path}: column {self.label_column!r} has no label in row {number}"
                )
        labels = np.unique(columns[self.label_column], return_inverse=True)[1]
        texts = np.array(columns[self.text_column], object)
        return {"train": ArraySource({"text": texts, "label": labels.astype(np.int32)})}

    def reader(self) -> Reader:
        """Returns a reader of CSV files with the text column, and of text files."""
        return lambda path: {"text": np.array(read_texts(path, self.text_column), object)}

    def output_names(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(sorted(set(read_columns(self.path)[self.label_column])))

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class TextFile(Data):
    """A long text in a file, as for `Tokens`: its end is held out; `text` is one part."""

    path: str = field(kw_only=False)  # UTF-8 file
    test_fraction: float = 0.0  # of the characters, at the end; 0: no split

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        """Returns `train`, followed by `validation` and `test`.

        Raises:
          UserError: the file cannot be read.
        """
        text = read_text(self.path)
        test = round(len(text) * self.test_fraction)
        validation = round((len(text) - test) * self.validation_fraction)
        cut, end = len(text) - test - validation, len(text) - test
        parts = {"train": text[:cut], "validation": text[cut:end], "test": text[end:]}
        return {
            name: ArraySource({"text": np.array([part], object)})
            for name, part in parts.items()
            if part
        }

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name


def _fitted(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation by column, 1 for a constant column."""
    spread = inputs.std(0)
    return inputs.mean(0), np.where(spread > 0, spread, 1)


def _columns(source: Source) -> dict[str, np.ndarray]:
    rows = [source[index] for index in range(len(source))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
