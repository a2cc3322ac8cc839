"""In-memory data sets: the user's arrays, and a small real set that needs no network."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.base import Data
from jdl.data.conversion import is_frame, to_array, to_numbers
from jdl.data.fingerprints import add_array
from jdl.data.sources import Example, Source
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class ArraySource:
    """A `Source` of named arrays with the examples along axis 0."""

    arrays: Mapping[str, np.ndarray]
    aside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Further arrays that are no part of an example, such as groups."""

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"arrays of one split differ in length: {lengths}")

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Example:
        """The example at `index`."""
        return {name: array[index] for name, array in self.arrays.items()}

    def array(self, name: str) -> np.ndarray | None:
        """The array of all examples, or None."""
        return self.arrays.get(name, self.aside.get(name))

    def digest(self) -> str:
        """SHA-256 of names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode())
            add_array(digest, array)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Arrays(Data):
    """In-memory arrays: `Arrays({"train": {"image": x, "label": y}, "test": {...}})`."""

    arrays: Mapping[str, Mapping[str, Any]] = field(kw_only=False)  # by split, then by name
    class_names: tuple[str, ...] = ()  # in the order of their numbers; (): classes have no names
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the columns of an input, by which `run.predict` arranges those of a frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        form = 'Arrays({"train": {"image": x, "label": y}})'
        if not isinstance(self.arrays, Mapping):
            raise UserError(f"arrays are given by split and name: {form}")
        if "train" not in self.arrays:
            known = ", ".join(map(str, self.arrays))
            raise UserError(f"arrays need a split 'train' (there are {known}): {form}")
        for split, arrays in self.arrays.items():
            if not isinstance(arrays, Mapping):
                raise UserError(
                    f"arrays of split {split!r} need names, not {type(arrays).__name__}: {form}"
                )

    def load(self) -> dict[str, Source]:
        """Returns the given splits.

        Raises:
          UserError: the arrays of a split differ in length.
        """
        return {
            split: ArraySource({name: _array(name, values) for name, values in arrays.items()})
            for split, arrays in self.arrays.items()
        }

    def full_name(self) -> str:
        """`arrays`."""
        return "arrays"

    def fit(self) -> dict[str, Json]:
        """Returns `classes`, the names of `columns`, and how a file is read."""
        return {**super().fit(), "input_columns": {k: list(v) for k, v in self.columns.items()}}

    def output_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.class_names

    def input_columns(self) -> Mapping[str, Sequence[str]]:
        """The names of the columns."""
        return self.columns


@dataclass(frozen=True, kw_only=True)
class Unkept(Data):
    """Stands for data that was passed from Python, of which a run directory keeps no examples."""

    def load(self) -> dict[str, Source]:
        """Raises a UserError, since there are no examples."""
        raise UserError(
            "the arrays of this run were passed from Python and are not kept in its directory: "
            "predict from them with run.predict(x), or name the experiment with --experiment FILE, "
            "in Python with jdl.open(workdir, experiment)"
        )

    def full_name(self) -> str:
        """`arrays`."""
        return "arrays"

    def output_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.fitted().get("classes", ()))


def _array(name: str, values: Any) -> np.ndarray:
    if is_frame(values):
        return to_numbers(values, name)
    return to_array(values, repr(name))


@dataclass(frozen=True, kw_only=True)
class Digits(Data):
    """1,797 handwritten digits that come with scikit-learn (Alpaydin and Kaynak, 1998).

    `image` is uint8 (8, 8, 1) with values 0 to 16, `label` int32 from 0 to 9.
    """

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`."""
        spec = importlib.util.find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise UserError("the digits come with scikit-learn: pip install scikit-learn")
        # The file that sklearn.datasets.load_digits reads, without two seconds of imports.
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        images, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)
        return {"train": ArraySource({"image": images, "label": labels})}

    def full_name(self) -> str:
        """`digits`."""
        return "digits"

    def needs(self) -> str:
        """The package that holds the digits, which is installed with jdl."""
        return "scikit-learn"
