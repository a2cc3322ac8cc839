"""Tables in CSV files."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, check_label_columns, check_names
from jdl.data.columns import Categories, Column, ColumnReader, Kind, Numbers, read_typed
from jdl.data.conversion import binary_label, hot_rows
from jdl.data.features import Feature, encode_all, stack_columns
from jdl.data.files import column_index, most_rows, read_header
from jdl.data.labeled_files import split_label
from jdl.data.leaks import warn_of_leaks
from jdl.data.notation import Notation
from jdl.data.public_files import locate, prepare_command
from jdl.data.readers import Reader
from jdl.data.sources import Source, Subset, root_indices
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class Table(Data):
    """A CSV file with a row per example: `x` (inputs,) float32 and `y`.

    All rows decide what a column holds: numbers, dates such as 2024-05-31 (days since 1970), or
    words; one that mixes them is refused. Numbers are scaled to mean 0 and deviation 1, and limited
    to 100 deviations; where one is missing, the median stands in and a further input is 1. Words
    are one-hot. All this is fitted on the training split. A column of `keep` is no input unless
    `columns` names it as well. A target of numbers is `y` () float32;
    one of words is the class, () int32, in the order of their names. With `label_delimiter` a row
    has any number of classes, as in `cat;dog`, and so it has with several target columns, one for
    each class; `y` is then (classes,) int32, 0 or 1 for each.
    """

    path: str = field(kw_only=False)  # CSV file with a header, or the name of a prepared one
    target: str | tuple[str, ...] = field(kw_only=False)  # column to predict, or several of 0 and 1
    columns: tuple[str, ...] = ()  # inputs; empty: all but target, keep, group and split_column
    categories: tuple[str, ...] = ()  # inputs that are words even if they look like numbers
    categorical: bool | None = None  # the target is a class; None: if not numeric
    label_delimiter: str | None = None  # between the classes of one row; None: it has one target
    keep: tuple[str, ...] = ()  # columns carried along by name, for metrics and audits
    group: str | None = None  # column of which no value is in two splits, such as a patient's id
    split_column: str | None = None  # names the split of each row, such as train; None: held out
    stratify: bool | None = None  # hold out the same share of each class; None: of classes
    train_limits: tuple[tuple[str, int], ...] = ()
    """Pairs of a class and its most training rows, drawn by `split_seed`; others are in no split.
    `(("fraud", 0),)` trains on the other classes alone, as detectors of anomalies do."""
    missing: tuple[str, ...] | None = None  # fields without a value; None: "", NA, nan, ?, ...
    decimal: str = "."  # mark before decimals
    thousands: str = ""  # mark between groups of three digits
    delimiter: str | None = None  # between fields; None: , ; tab or |, as the first line has it
    max_categories: int = 100  # most words of an input column

    locations = ("path",)
    array_names: ClassVar[tuple[str, str]] = ("x", "y")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("columns", "keep", "categories"):
            check_names(self, name)
        for name in ("columns", "keep"):
            for column in (*self._targets, *([self.group] if self.group else [])):
                if column in getattr(self, name) and (name, column) != ("keep", self.group):
                    raise UserError(
                        f"data.{name} holds {column!r}, which is data."
                        f"{'target' if column in self._targets else 'group'}: take it out of one"
                    )
        for name, column in (
            ("columns", self.columns),
            ("keep", self.keep),
            ("target", self._targets),
            ("group", (self.group,)),
        ):
            if self.split_column is not None and self.split_column in column:
                raise UserError(
                    f"data.split_column is {self.split_column!r}, as data.{name}: change one"
                )
        if self.label_delimiter is not None and not self.label_delimiter.strip():
            raise UserError("data.label_delimiter is a mark such as '+' or ';', not blank")
        if not isinstance(self.target, str):
            check_label_columns(self, "target")
            if self.categorical is not None:
                raise UserError(
                    "data.categorical is for one target: the columns of several hold 0 or 1"
                )
        if self.group in self._targets:
            raise UserError(f"data.group and data.target are both {self.group!r}: change one")
        if self.train_limits and (self.label_delimiter or not isinstance(self.target, str)):
            raise UserError("data.train_limits needs one target, of one class for each row")
        for name in ("x", "y", "mask"):
            if name in self.keep:
                raise UserError(f"data.keep holds {name!r}, which a batch has: rename the column")
        if self.decimal == self.thousands or len(self.decimal) != 1 or len(self.thousands) > 1:
            raise UserError(
                f"data.decimal {self.decimal!r} and data.thousands {self.thousands!r} must be two "
                f"different characters (thousands may be empty)"
            )

    @property
    def _path(self) -> str:
        """The file, or the prepared one of that name."""
        return locate(self.path)

    @property
    def _targets(self) -> tuple[str, ...]:
        """The columns of targets."""
        return (self.target,) if isinstance(self.target, str) else self.target

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`: numbers as they are, NaN where missing, words as ids.

        Raises:
          UserError: the file cannot be read, a column is missing, or a field is of the wrong kind.
        """
        columns = self._read()
        inputs = self._take(columns, self._inputs(list(columns)))
        return {"train": self._source(columns, stack_columns(inputs))}

    def splits(self) -> dict[str, Source]:
        """Returns all splits, scaled alike."""
        return self._build(self.fitted_values)[0]

    def fraction_path(self) -> str:
        """See `Data.fraction_path`."""
        return ""

    def fit(self) -> dict[str, Json]:
        """Returns `features`, the inputs in their order, `classes`, and the words of `keep`."""
        return self._build(None)[1]

    def reader(self) -> Reader:
        """Returns a reader of CSV files with the input columns, scaled as in training."""
        features = [Feature.from_json(fields) for fields in self.fitted()["features"]]

        def read(path: Path) -> dict[str, np.ndarray]:
            rows = most_rows(path)
            readers = {f.name: self._reader(f.name, path, rows, f.kind) for f in features}
            columns = read_typed(path, readers, self.delimiter)
            for feature in features:
                feature.warn_of_unknown(path, columns[feature.name])
            return {"x": np.ascontiguousarray(encode_all(features, columns))}

        return read

    def output_names(self) -> tuple[str, ...]:
        """Class names, if the target is a class."""
        return tuple(self.fitted()["classes"])

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def column_names(self) -> tuple[str, ...]:
        """Names of all columns of the file."""
        return tuple(read_header(self._path, self.delimiter))

    def keeping(self, names: Sequence[str]) -> "Table":
        """Returns this table with further columns in `keep`, and the same inputs."""
        known = self.fitted()
        inputs = tuple(feature["name"] for feature in known["features"])
        table = dataclasses.replace(self, columns=inputs, keep=(*self.keep, *names))
        return table.with_fitted({**known, "keep": table._build(known)[1]["keep"]})

    def value_names(self, name: str) -> tuple[str, ...]:
        """The words of a column of `keep`, and the classes."""
        return tuple(self.fitted()["keep"].get(name, ())) or super().value_names(name)

    def needs(self) -> str:
        """The command that brings the file, else its path."""
        return prepare_command(self.path)

    def _build(
        self, fitted: Mapping[str, Json] | None
    ) -> tuple[dict[str, Source], dict[str, Json]]:
        """Returns the splits and what was fitted on them, or is given as `fitted`."""
        columns = self._read()
        names = self._inputs(list(columns))
        inputs = self._take(columns, names)
        before = fitted["keep"] if fitted else {}
        if fitted and isinstance(self.target, str) and not self.label_delimiter:
            before = {self.target: fitted["classes"], **before}
        for name, words in before.items():
            column = columns[name]
            if isinstance(column, Categories):
                if name == self.target:
                    column.check_known(f"{self._path}: column {name!r}", words)
                columns[name] = column.renumbered(words)
        words = {n: list(c.names) for n in self.keep if isinstance(c := columns[n], Categories)}
        classes = fitted["classes"] if fitted else self._classes(columns)
        rest = self._source(columns, classes=classes)
        named = self._named_splits(columns, rest)
        target = columns[self.target] if isinstance(self.target, str) else None
        columns.clear()
        parts = self.divide(named)
        rows = {split: root_indices(part) for split, part in parts.items()}
        parts.clear()
        if self.train_limits:
            rows["train"] = self._limited(rows["train"], rest.arrays["y"], classes)
        if fitted:
            features = [Feature.from_json(fields) for fields in fitted["features"]]
        else:
            features = [
                Feature.fit(self._path, name, inputs[name], rows["train"]) for name in names
            ]
            if target is not None and not self.label_delimiter:
                warn_of_leaks(self._path, inputs, self._targets[0], target, rows["train"])
        source = ArraySource({"x": encode_all(features, inputs), **rest.arrays}, rest.aside)
        known = {
            "features": [feature.to_json() for feature in features],
            "classes": classes,
            "keep": words,
        }
        if len(rows) == 1 and not self.train_limits:
            return {"train": source}, known
        return {split: Subset(source, places) for split, places in rows.items()}, known

    def _limited(self, rows: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Returns training rows with at most as many of a class as `train_limits` says."""
        rng, kept = np.random.default_rng(self.split_seed), np.ones(len(rows), bool)
        for name, limit in self.train_limits:
            if name not in classes:
                raise UserError(
                    f"data.train_limits names {name!r}, which is no class of column "
                    f"{self.target!r} ({', '.join(map(repr, classes))}): with classes written as "
                    f"numbers, set data.categorical"
                )
            places = np.flatnonzero(y[rows] == classes.index(name))
            if len(places) > limit:
                kept[rng.permutation(places)[limit:]] = False
        if not kept.any():
            raise UserError("data.train_limits leaves no training row: raise one of its numbers")
        return rows[kept]

    def _read(self) -> dict[str, Column]:
        """Returns the columns that are used."""
        header = read_header(self._path, self.delimiter)
        inputs = self._inputs(header)
        others = [name for name in (self.group, self.split_column) if name]
        used = dict.fromkeys([*inputs, *self._targets, *self.keep, *others])
        known = set(header)
        for name in [name for name in (*used, *self.categories) if name not in known]:
            column_index(self._path, header, name)
        rows = most_rows(self._path)
        readers = {name: self._reader(name, self._path, rows) for name in used}
        columns = read_typed(self._path, readers, self.delimiter)
        needed = [*((name, "label") for name in self._targets)]
        for name, what in (*needed, (self.group, "group"), (self.split_column, "split")):
            may_be_none = name == self.target and self.label_delimiter
            if name and not may_be_none and (gap := readers[name].first_missing):
                raise UserError(
                    f"{self._path}: column {name!r} has no {what} in row {gap[0]}: give it one or "
                    f"remove the row (data.missing lists the fields that count as missing)"
                )
        for name in self.keep:
            column = columns[name]
            known_words = (self.group, *self.categories, *inputs)
            if isinstance(column, Categories) and name not in known_words:
                columns[name] = column.as_numbers() or column
        return columns

    def _reader(
        self, name: str, path: str | Path, rows: int, kind: Kind | None = None
    ) -> ColumnReader:
        place = f"{path}: column {name!r}"
        notation = Notation(missing=self.missing, decimal=self.decimal, thousands=self.thousands)
        is_target = name in self._targets
        is_input = not is_target and name not in self._beside
        several = self.label_delimiter is not None or not isinstance(self.target, str)
        is_word = name in self.categories or (is_target and (self.categorical or several))
        is_word |= name in self._beside
        if is_target and self.categorical is False:
            kind = "number"
        return ColumnReader(
            place,
            notation,
            rows,
            kind=kind or ("category" if is_word else None),
            exact=is_target or name in self.keep,
            limit=self.max_categories if is_input and kind is None else None,
            remedy=(
                ", or set data.categorical"
                if is_target
                else ", or list the column in data.categories"
            ),
        )

    def _inputs(self, header: list[str]) -> list[str]:
        others = [n for n in header if n not in (*self._targets, *self._beside)]
        names = list(self.columns) or others
        if not names:
            beside = ", ".join(map(repr, self._targets))
            raise UserError(f"{self._path} has no column for inputs beside {beside}")
        for name in names:
            if name.startswith("Unnamed: ") and not self.columns:
                raise UserError(
                    f"{self._path}: column {name.split()[1]} has no name, as an index has none: "
                    f"remove it, or name the inputs in data.columns"
                )
        return names

    @property
    def _beside(self) -> tuple[str | None, ...]:
        """The columns that are neither inputs nor targets."""
        kept = [name for name in self.keep if name not in self.columns]
        return (self.group, self.split_column, *kept)

    def _take(self, columns: dict[str, Column], names: Sequence[str]) -> dict[str, Column]:
        """Returns the columns of inputs, which stay in the dict if they are kept as well."""
        return {n: columns[n] if n in self.keep else columns.pop(n) for n in names}

    def _named_splits(self, columns: Mapping[str, Column], rows: Source) -> dict[str, Source]:
        """Returns the splits that a column names, without one `train`.

        Raises:
          UserError: it names no `train`, or a split of another name.
        """
        if self.split_column is None:
            return {"train": rows}
        column, known = columns[self.split_column], ("train", "validation", "calibration", "test")
        assert isinstance(column, Categories)
        if odd := [name for name in column.names if name not in known] or (
            ["no 'train'"] if "train" not in column.names else []
        ):
            raise UserError(
                f"{self._path}: column {self.split_column!r} holds {odd[0]}: it names the split of "
                f"each row, {', '.join(known)}, of which train must occur"
            )
        codes = {name: column.names.index(name) for name in known if name in column.names}
        return {name: Subset(rows, np.flatnonzero(column.codes == c)) for name, c in codes.items()}

    def _source(
        self,
        columns: Mapping[str, Column],
        x: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
    ) -> ArraySource:
        """Returns all rows, with the group aside; None: the classes that the targets hold."""
        classes = self._classes(columns) if classes is None else classes
        arrays = {} if x is None else {"x": x}
        if isinstance(self.target, str):
            arrays["y"] = self._y(self.target, columns[self.target], classes)
        else:
            marks = [self._marks(name, columns[name]) for name in self.target]
            arrays["y"] = np.stack(marks, 1)
        for name in self.keep:
            column = columns[name]
            arrays[name] = (
                column.codes if isinstance(column, Categories) else self._kept(name, column)
            )
        groups = columns[self.group] if self.group else None
        aside = {self.group: groups.codes} if self.group and isinstance(groups, Categories) else {}
        return ArraySource(arrays, aside)

    def _kept(self, name: str, column: Numbers) -> np.ndarray:
        """Returns integers as int32 where no number is missing or has a fraction, else float32."""
        values = column.values
        if (values % 1 == 0).all() and np.abs(values).max() < 2**31:
            return values.astype(np.int32)
        found = values.astype(np.float32)
        wrong = np.flatnonzero((values % 1 == 0) & (found != values))
        if wrong.size:
            raise UserError(
                f"{self._path}: column {name!r} holds {values[wrong[0]]:.17g} in row "
                f"{wrong[0] + 1}, which 32 bits cannot hold: list the column in data.categories"
            )
        return found

    def _classes(self, columns: Mapping[str, Column]) -> list[str]:
        """Returns the classes that the targets hold, in their order; of numbers none."""
        if not isinstance(self.target, str):
            return list(self.target)
        column = columns[self.target]
        if not isinstance(column, Categories):
            return []
        if self.label_delimiter is None:
            return list(column.names)
        rows = [split_label(each, self.label_delimiter) for each in column.names]
        return sorted({name for row in rows for name in row})

    def _marks(self, name: str, column: Column) -> np.ndarray:
        """Returns the column of one class, (rows,) int32."""
        assert isinstance(column, Categories)
        rows = [int(np.argmax(column.codes == code)) + 1 for code in range(len(column.names))]
        place = f"{self._path}: column {name!r}"
        marks = [binary_label(x, place, row) for x, row in zip(column.names, rows, strict=True)]
        return np.array(marks, np.int32)[column.codes]

    def _y(self, name: str, column: Column, classes: Sequence[str]) -> np.ndarray:
        """Returns `y` of all rows; with a `label_delimiter` a column for each of `classes`."""
        if isinstance(column, Categories) and self.label_delimiter:
            place = f"{self._path}: column {name!r}"
            rows = [split_label(each, self.label_delimiter) for each in column.names]
            return hot_rows([*rows, []], classes, place)[column.codes]  # -1: no class
        if isinstance(column, Categories):
            return column.codes
        values = column.values  # read exactly, so that the center is 0
        if column.kind == "date":
            raise UserError(
                f"{self._path}: column {name!r} holds dates, which are no target: give a "
                f"column of numbers, or set data.categorical to take each date for a class"
            )
        size = max(abs(values.min()), abs(values.max()))
        if size * np.finfo(np.float32).eps > 1e-3 * values.std() > 0:
            raise UserError(
                f"{self._path}: column {name!r} holds numbers such as {values[0]:.17g} that "
                f"float32 cannot tell apart: subtract a constant from all"
            )
        return column.rounded()
