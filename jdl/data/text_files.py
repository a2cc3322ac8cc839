"""Texts in files: labeled ones in a table, or a long one."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, check_label_columns
from jdl.data.columns import Categories, ColumnReader
from jdl.data.conversion import binary_label
from jdl.data.files import column_index, read_columns, read_text, read_texts
from jdl.data.notation import Notation, looks_like_number, number_of
from jdl.data.readers import Reader
from jdl.data.sources import Source
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class TextTable(Data):
    """A CSV or TSV file of labeled texts: `text` and `label`, as for `Words`.

    Words and whole numbers are classes, () int32, numbered in their order; labels of which one has
    a fraction stay numbers, () float32. With several columns of labels a text has any number of
    classes, and `label` is (classes,) int32, 0 or 1 for each.
    """

    path: str = field(kw_only=False)  # file whose first row names its columns
    text_column: str = "text"  # column of texts
    label_column: str | tuple[str, ...] = "label"  # column of labels, or one for each class: 0 or 1
    categorical: bool | None = None  # labels are classes; None: unless one has a fraction
    group: str | None = None  # column of which no value is in two splits, such as an author
    stratify: bool | None = None  # hold out the same share of each class; None: of classes
    missing: tuple[str, ...] | None = None  # labels without a value; None: "", NA, nan, ?, ...
    delimiter: str | None = None  # between fields; None: , ; tab or |, as the first line has it

    locations = ("path",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.label_column, str):
            check_label_columns(self, "label_column")

    @property
    def has_several_labels(self) -> bool:
        """See `Data.has_several_labels`."""
        return not isinstance(self.label_column, str)

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`.

        Raises:
          UserError: the file cannot be read, a column is missing, or a label.
        """
        columns = read_columns(self.path, self.delimiter)
        column = self.label_column
        names = (column,) if isinstance(column, str) else column
        for name in filter(None, (self.text_column, *names, self.group)):
            column_index(self.path, list(columns), name)
        if isinstance(column, str):
            labels = self._labels(column, columns[column])
        else:
            labels = np.stack([self._marks(name, columns[name]) for name in column], 1)
        texts = np.array(columns[self.text_column], object)
        aside = {}
        if self.group:
            aside[self.group] = self._column(self.group, columns[self.group], "group").codes
        return {"train": ArraySource({"text": texts, "label": labels}, aside)}

    def fit(self) -> dict[str, Json]:
        """Returns `classes`."""
        if not isinstance(self.label_column, str):
            return {"classes": list(self.label_column)}
        columns = read_columns(self.path, self.delimiter)
        column_index(self.path, list(columns), self.label_column)
        found = self._column(self.label_column, columns[self.label_column], "label")
        is_real = self._real(self.label_column, found) is not None
        return {"classes": [] if is_real else list(found.names)}

    def reader(self) -> Reader:
        """Returns a reader of CSV and TSV files with the text column, and of text files."""

        def read(path: Path) -> dict[str, np.ndarray]:
            return {"text": np.array(read_texts(path, self.text_column, self.delimiter), object)}

        return read

    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(self.fitted()["classes"])

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def _marks(self, name: str, texts: tuple[str, ...]) -> np.ndarray:
        """Returns the column of a class, (rows,) int32."""
        place = f"{self.path}: column {name!r}"
        marks = [binary_label(text.strip(), place, row) for row, text in enumerate(texts, 1)]
        return np.array(marks, np.int32)

    def _labels(self, column: str, texts: tuple[str, ...]) -> np.ndarray:
        found = self._column(column, texts, "label")
        if (values := self._real(column, found)) is not None:
            return values
        if self.fitted_values is not None:
            found.check_known(f"{self.path}: column {column!r}", self.fitted_values["classes"])
            found = found.renumbered(self.fitted_values["classes"])
        return found.codes

    def _real(self, column: str, labels: Categories) -> np.ndarray | None:
        """Returns the labels as numbers (rows,) if that is what they are, else None.

        Raises:
          UserError: some are numbers with fractions and others are not, or look like them.
        """
        if self.categorical:
            return None
        numbers = [number_of(name) for name in labels.names]
        real = self.categorical is False or any(n is not None and n % 1 for n in numbers)
        for code, (name, number) in enumerate(zip(labels.names, numbers, strict=True)):
            if number is None and (real or looks_like_number(name)):
                row = int(np.argmax(labels.codes == code)) + 1
                raise UserError(
                    f"{self.path}: column {column!r} holds {name!r} in row {row}, no "
                    f"number such as 1.5: correct it, or set data.categorical"
                )
        return np.array(numbers, np.float64)[labels.codes].astype(np.float32) if real else None

    def _column(self, name: str, texts: tuple[str, ...], what: str) -> Categories:
        """Returns a column without gaps as words."""
        place = f"{self.path}: column {name!r}"
        reader = ColumnReader(place, Notation(missing=self.missing), len(texts), kind="category")
        reader.add(texts)
        if reader.first_missing:
            raise UserError(
                f"{place} has no {what} in row {reader.first_missing[0]}: give it one or remove "
                f"the row (data.missing lists the fields that count as missing)"
            )
        column = reader.finish()
        assert isinstance(column, Categories)
        return column


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
        if not text:
            raise UserError(f"{self.path} is empty: it must hold a text")
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
