"""Who chose what, and when: implicit feedback for recommendation."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jdl.data.base import Data
from jdl.data.columns import Categories, Column, ColumnReader, Kind, read_typed
from jdl.data.files import most_rows
from jdl.data.fingerprints import add_array
from jdl.data.notation import Notation
from jdl.data.public_files import locate, prepare_command
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source
from jdl.errors import UserError
from jdl.typing import Json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """A `Source` of choices to predict from what the user chose before.

    Attributes:
      users, items: of all choices, by user and then by time, int32 from 1.
      rows: the choices to predict.
      first: for each choice, the first one of its user.
      known: for each of `rows`, how many choices are known, counted from the first of all; items
        among them are not recommended again.
      negatives: for each of `rows`, items that the user never chose, (rows, negatives) int32.
      num_items: largest item.
      length: of the history.
    """

    users: np.ndarray
    items: np.ndarray
    rows: np.ndarray
    first: np.ndarray
    known: np.ndarray
    negatives: np.ndarray
    num_items: int
    length: int

    def __len__(self) -> int:
        """Number of choices to predict."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """The choice at `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several choices at once."""
        return [self._read(index) for index in indices]

    def digest(self) -> str:
        """SHA-256 of all choices and of those to predict."""
        digest = hashlib.sha256(f"{self.num_items} {self.length}".encode())
        for array in (self.users, self.items, self.rows, self.known, self.negatives):
            add_array(digest, array)
        return digest.hexdigest()

    def _read(self, index: int) -> Example:
        row = int(self.rows[index])
        first, item = int(self.first[row]), self.items[row]
        seen = np.zeros(self.num_items + 1, bool)
        seen[self.items[first : int(self.known[index])]] = True
        seen[item] = False
        return {
            "user": self.users[row],
            "history": _last(self.items[first:row], self.length),
            "item": item,
            "seen": seen,
            "negatives": self.negatives[index],
        }


@dataclass(frozen=True, kw_only=True)
class Interactions(Data):
    """Recommendation from a table with a row per choice: user, item and time.

    `leave_last_out` tests on the last choice of each user and validates on the one before.
    `temporal` cuts at one moment for all: the last `test_fraction` of the choices are held out, and
    tested on is the first of them of each user; the `validation_fraction` before likewise. A user
    who chooses an item again has chosen it the first time only.

    An example holds `user` () and `item` () int32 from 1, `history` (length,) int32, the items
    before, padded with 0 at the front, `seen` (items + 1,) bool, those not to recommend, and
    `negatives` (num_negatives,) int32, drawn by `split_seed` from the items that the user never
    chose. Held-out choices of users or items without a training choice are left out and counted.
    """

    path: str = field(kw_only=False)  # CSV file with a header, or the name of a prepared one
    user: str = "user"  # column of users
    item: str = "item"  # column of items
    time: str = "time"  # column of times: dates, or numbers
    protocol: Literal["leave_last_out", "temporal"] = "leave_last_out"  # what is held out
    length: int = 50  # items of the history
    num_negatives: int = 99  # items that a held-out one is ranked among
    delimiter: str | None = None  # between fields; None: , ; tab or |, as the first line has it

    locations = ("path",)
    array_names: ClassVar[tuple[str, str]] = ("history", "item")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({self.user, self.item, self.time}) < 3:
            raise UserError("data.user, data.item and data.time must be three different columns")
        for name in ("length", "num_negatives"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1, not {getattr(self, name)}")

    def splits(self) -> dict[str, Source]:
        """Returns `train` and what is held out.

        Raises:
          UserError: the file cannot be read, or a split is empty.
        """
        users, items, times = self._choices()
        order = np.lexsort((np.arange(len(times)), times, users))
        users, items, times = users[order], items[order], times[order]
        begins = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        first = np.repeat(begins, np.diff(np.r_[begins, len(users)]))
        parts = self._parts(users, times)
        train = parts["train"]
        trained = np.zeros(len(users), bool)
        trained[train] = True
        num_items, rng = int(items.max()), np.random.default_rng(self.split_seed)
        ends = np.r_[begins[1:], len(users)]
        own_end = np.repeat(ends, np.diff(np.r_[begins, len(users)]))
        found: dict[str, Source] = {}
        for name, rows in parts.items():
            if name != "train":
                rows = self._trained_only(name, rows, users, items, train)
            if not len(rows):
                raise UserError(
                    f"{self.path} has no choice in split {name!r}: change data.{name}_fraction, or "
                    f"give each user more choices"
                )
            # In training all training choices of a user are known, so that none is a negative.
            known = rows
            if name == "train":
                last = np.searchsorted(np.flatnonzero(trained), own_end[rows])
                known = np.flatnonzero(trained)[last - 1] + 1
            negatives = self._negatives(rng, rows, items, first, own_end, num_items, name)
            found[name] = Choices(
                users, items, rows, first, known, negatives, num_items, self.length
            )
        return found

    def fit(self) -> dict[str, Json]:
        """Returns the names of `users` and `items`, in the order of their numbers from 1."""
        columns, _ = self._read(locate(self.path))
        users, items = columns[self.user], columns[self.item]
        assert isinstance(users, Categories)
        assert isinstance(items, Categories)
        return {"users": list(users.names), "items": list(items.names)}

    def reader(self) -> Reader:
        """Returns a reader of CSV files of choices: the next one of each user is predicted.

        Users and items must be those of training.
        """
        fitted = self.fitted()

        def read(path: Path) -> dict[str, np.ndarray]:
            columns, times = self._read(path)
            numbers = {}
            for name, known in ((self.user, "users"), (self.item, "items")):
                column = columns[name]
                assert isinstance(column, Categories)
                column.check_known(f"{path}: column {name!r}", _Shown(fitted[known]))
                numbers[name] = column.renumbered(fitted[known]).codes + 1
            order = np.lexsort((times, numbers[self.user]))
            users, first = np.unique(numbers[self.user][order], return_index=True)
            histories = np.split(numbers[self.item][order], first[1:])
            seen = np.zeros((len(histories), len(fitted["items"]) + 1), bool)
            for row, history in enumerate(histories):
                seen[row, history] = True
            return {
                "user": users.astype(np.int32),
                "history": np.stack([_last(each, self.length) for each in histories]),
                "seen": seen,
            }

        return read

    def example_names(self, path: Path) -> dict[str, list[Json]]:
        """See `Data.example_names`: the users, in the order of training."""
        column = self._read(path)[0][self.user]
        assert isinstance(column, Categories)
        place = {name: index for index, name in enumerate(self.fitted()["users"])}
        return {"user": sorted(column.names, key=place.__getitem__)}

    def output_names(self) -> tuple[str, ...]:
        """Names of the items."""
        return tuple(self.fitted()["items"])

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def needs(self) -> str:
        """The command that brings the file, else its path."""
        return prepare_command(self.path)

    def _read(self, path: str | Path) -> tuple[dict[str, Column], np.ndarray]:
        """Returns the columns, and the time of each row."""
        rows = most_rows(path)
        kinds: dict[str, Kind] = {self.user: "category", self.item: "category"}
        readers = {
            name: ColumnReader(
                f"{path}: column {name!r}", Notation(), rows, kind=kinds.get(name), exact=True
            )
            for name in (self.user, self.item, self.time)
        }
        columns = read_typed(path, readers, self.delimiter)
        for name, reader in readers.items():
            if gap := reader.first_missing:
                raise UserError(
                    f"{path}: column {name!r} has no value in row {gap[0]}: remove the row"
                )
        times = columns.pop(self.time)
        if isinstance(times, Categories):
            raise UserError(f"{path}: column {self.time!r} holds no times: dates or numbers")
        return columns, times.exact()

    def _choices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns users, items and times of all choices, each pair once."""
        columns, times = self._read(locate(self.path))
        known = (self.fitted_values or {}).get("users"), (self.fitted_values or {}).get("items")
        numbers = []
        for name, words in zip((self.user, self.item), known, strict=True):
            column = columns[name]
            assert isinstance(column, Categories)
            numbers.append((column.renumbered(words or column.names).codes + 1).astype(np.int32))
        users, items = numbers
        order = np.argsort(times, kind="stable")
        pairs = users[order].astype(np.int64) * (int(items.max()) + 1) + items[order]
        once = np.sort(order[np.unique(pairs, return_index=True)[1]])
        if len(once) < len(users):
            _log.warning(
                "%s: %d rows repeat a choice of the same user and item: the first one counts",
                self.path, len(users) - len(once),
            )  # fmt: skip
        return users[once], items[once], times[once]

    def _parts(self, users: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the choices of each split, of all ordered by user and time."""
        rows = np.arange(len(users))
        shares = {"validation": self.validation_fraction, "test": self.test_fraction}
        if self.protocol == "leave_last_out":
            found, left = {}, rows
            for name in ("test", "validation"):
                if shares[name]:
                    last = np.diff(users[left], append=0) != 0
                    found[name], left = left[last], left[~last]
            return {"train": left, **dict(reversed(found.items()))}
        ordered = np.sort(times)
        test = ordered[min(round(len(rows) * (1 - self.test_fraction)), len(rows) - 1)]
        count = int((times < test).sum()) if self.test_fraction else len(rows)
        start = ordered[min(round(count * (1 - self.validation_fraction)), len(rows) - 1)]
        found = {}
        begin = start if self.validation_fraction else (test if self.test_fraction else np.inf)
        found["train"] = rows[times < begin]
        for name, low, high in (
            ("validation", start, test if self.test_fraction else np.inf),
            ("test", test, np.inf),
        ):
            if shares[name]:
                inside = rows[(times >= low) & (times < high)]
                found[name] = inside[np.unique(users[inside], return_index=True)[1]]
        return found

    def _trained_only(
        self,
        name: str,
        rows: np.ndarray,
        users: np.ndarray,
        items: np.ndarray,
        train: np.ndarray,
    ) -> np.ndarray:
        """Returns the choices of users and items that are in training."""
        by_user, by_item = np.isin(users[rows], users[train]), np.isin(items[rows], items[train])
        if not (by_user & by_item).all():
            _log.warning(
                "%s: %d of %d choices in split %r are left out: %d of users and %d of items "
                "without a training choice",
                self.path, (~(by_user & by_item)).sum(), len(rows), name, (~by_user).sum(),
                (~by_item).sum(),
            )  # fmt: skip
        return rows[by_user & by_item]

    def _negatives(
        self,
        rng: np.random.Generator,
        rows: np.ndarray,
        items: np.ndarray,
        first: np.ndarray,
        end: np.ndarray,
        num_items: int,
        split: str,
    ) -> np.ndarray:
        """Returns items that the user of each row never chose; of training rows none."""
        if split == "train":
            return np.zeros((len(rows), 0), np.int32)
        found = np.zeros((len(rows), self.num_negatives), np.int32)
        for place, row in enumerate(rows):
            others = np.setdiff1d(np.arange(1, num_items + 1), items[first[row] : end[row]])
            if len(others) < self.num_negatives:
                raise UserError(
                    f"{self.path}: a user has chosen all but {len(others)} of {num_items} items, "
                    f"fewer than data.num_negatives = {self.num_negatives}: lower that"
                )
            found[place] = rng.choice(others, self.num_negatives, replace=False)
        return found


class _Shown(list[str]):
    """Names of which an error shows a few."""

    def __iter__(self):
        """Yields the first names."""
        return iter([*self[:3], f"... {len(self)} in all"] if len(self) > 4 else self[:])


def _last(items: np.ndarray, length: int) -> np.ndarray:
    """Returns the last items, padded with 0 at the front, (length,) int32."""
    found = np.zeros(length, np.int32)
    kept = items[-length:]
    found[length - len(kept) :] = kept
    return found
