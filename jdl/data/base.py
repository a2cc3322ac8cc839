"""Base class of data sets: named splits of examples with their transforms."""

import copy
import functools
import hashlib
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from jdl.data.buckets import Buckets
from jdl.data.fingerprints import hash_examples
from jdl.data.holdout import hold_out
from jdl.data.readers import Reader, audio_rate, describe_files, file_reader
from jdl.data.resize import Resize
from jdl.data.sources import Example, Source, Subset, read_array
from jdl.data.tokenizers import Encoding, Tokenizer, read_tokenizer
from jdl.errors import UserError, nearest
from jdl.typing import Batch, Json, Keys

Transform = Callable[[Example], Example]
"""A function of one example on the host; run once if the split is in memory.

It is deterministic. One that draws at random in training also has a method `random_map(example,
rng)`, as Grain's `RandomMap`: training calls that, with a NumPy generator that is a function of
the seed of the run, the epoch and the example's index, and evaluation and prediction the function.
"""

DeviceTransform = Callable[[Batch, Keys | None], Batch]
"""A pure function of a batch in the compiled step, with one key per example, None in evaluation.

One with a true attribute `needs_positions` finds in training the arrays `index` and `epoch`, int32
(batch,): the place of each example in the training split, and how often it was seen before.
"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set with its transforms. A subclass returns its splits from `load`.

    A split that the set lacks is held out of `train` with `split_seed`, whatever the run's seed.
    """

    transforms: tuple[Transform, ...] = ()  # on the host, per example
    device_transforms: tuple[DeviceTransform, ...] = ()  # in the compiled step, per batch
    pipeline: Literal["auto", "in_memory", "grain"] = "auto"  # auto: in memory up to 1 GiB
    test_fraction: float = 0.2  # of train held out as test if the set has none; 0: no split
    calibration_fraction: float = 0.0  # of train, less test, for `jdl calibrate`; 0: no split
    validation_fraction: float = 0.1  # of train, less these, held out as validation; 0: no split
    train_fraction: float = 1.0  # of what is left of train to keep, for learning curves
    split_seed: int = 0  # of the held-out splits
    stratify: bool | None = False  # hold out the same share of each class; None: of classes
    ordered: bool = False  # hold out the end, not a random part: for time series
    shuffle: bool = True  # train in a new order each epoch; False: in stored order
    buckets: Buckets | None = None  # group training examples by length

    locations: ClassVar[tuple[str, ...]] = ()
    """Fields that only locate the bytes; a resumed run compares the bytes in their place."""

    digest_is_sampled: ClassVar[bool] = False
    """Whether `digest` leaves out some bytes; `environment.json` then says `sampled`."""

    array_names: ClassVar[tuple[str, str]] = ("image", "label")
    """Input and target of an example, which a task reads unless it names others."""

    def __post_init__(self) -> None:
        for name in ("test_fraction", "calibration_fraction", "validation_fraction"):
            share = getattr(self, name)
            if not isinstance(share, numbers.Real) or not 0 <= float(share) < 1:
                raise UserError(f"data.{name} is a share in [0, 1), not {share!r}")
        part = self.train_fraction
        if not isinstance(part, numbers.Real) or not 0 < float(part) <= 1:
            raise UserError(f"data.train_fraction is a share in (0, 1], not {part!r}")
        if part < 1 and (below := self.fraction_path()) != "":
            there = f": set data.{below}.train_fraction" if below else ""
            raise UserError(f"data.train_fraction has no effect on {type(self).__name__}{there}")
        if self.stratify and (self.ordered or self.group_name):
            other = "ordered" if self.ordered else "group"
            raise UserError(f"data.stratify and data.{other} exclude each other: set one of them")
        if self.buckets and not self.shuffle:
            raise UserError("data.buckets changes the order: set data.shuffle to True")
        for name in ("transforms", "device_transforms"):
            check_transforms(getattr(self, name), f"data.{name}")

    @property
    def required_batch_size(self) -> int | None:
        """The batch size that the training order requires; None: any."""
        return None

    @property
    def needs_positions(self) -> bool:
        """Whether a device transform reads `index` and `epoch` of training examples."""
        return any(getattr(each, "needs_positions", False) for each in self.device_transforms)

    @property
    def random_transform(self) -> str | None:
        """Path of the first host transform that draws at random in training; None: there is none.

        The training split is then streamed, since its examples differ in each epoch.
        """
        for index, each in enumerate(self.transforms):
            if hasattr(each, "random_map"):
                return f"data.transforms.{index} ({type(each).__name__})"
        return None

    @property
    def streamed_by(self) -> str | None:
        """What keeps the training split from being in memory; None: nothing."""
        if self.random_transform:
            return f"{self.random_transform} draws anew in each epoch"
        return "data.buckets cuts each batch to another length" if self.buckets else None

    def load(self) -> dict[str, Source]:
        """Returns the splits that the data set itself has, including `train`."""
        raise UserError(
            f"{type(self).__name__} defines no load: return its splits, a Source by name"
        )

    @property
    def wrapped(self) -> "Data | None":
        """The data set among the fields, from whose examples this one's are made; None: none."""
        return next(iter(self.parts.values()), None)

    @property
    def parts(self) -> "Mapping[str, Data]":
        """The data sets from whose examples this one's are made, by their path below it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Data)}

    def split(self, name: str) -> Source:
        """Returns one split: of those that `splits` returns, or a further one of what is wrapped.

        Raises:
          UserError: there is none of that name, or this data set makes no examples of it.
        """
        splits = self.splits()
        if name in splits or self.wrapped is None:
            return get_split(splits, name)
        return self.convert(self.fitted_wrapped.split(name))

    def convert(self, source: Source) -> Source:
        """Converts a further split of the wrapped data set, such as one without labels.

        Raises:
          UserError: this data set does not, which is the default.
        """
        del source
        raise UserError(
            f"{type(self).__name__} makes examples of {', '.join(self.splits())} alone, and not of "
            f"further splits of {self.full_name()}"
        )

    def full_name(self) -> str:
        """`NAME` or `NAME:VERSION` of the data set; by default of the one that it wraps."""
        if self.wrapped is None:
            raise UserError(
                f"{type(self).__name__} defines no full_name: return what the data set is called"
            )
        return self.wrapped.full_name()

    def splits(self) -> dict[str, Source]:
        """Returns `train`, `validation`, `test`, and `calibration` if it has a fraction.

        What the set lacks is held out.

        Raises:
          UserError: a split is empty, or a fraction leaves it without examples.
        """
        return self.divide(self.load())

    def divide(self, splits: Mapping[str, Source]) -> dict[str, Source]:
        """Holds out the splits that are missing, and raises as `splits` does."""
        splits = dict(splits)
        for name, source in splits.items():
            if not len(source):
                raise UserError(
                    f"split {name!r} of {self.full_name()} is empty: give it examples or remove it"
                )
        for name, fraction in (
            ("test", self.test_fraction),
            ("calibration", self.calibration_fraction),
            ("validation", self.validation_fraction),
        ):
            if name not in splits and fraction:
                count = len(splits["train"])
                splits["train"], splits[name] = self._hold_out(splits["train"], fraction)
                for split, change in (("train", "lower"), (name, "raise")):
                    if not len(splits[split]):
                        kind = "training" if split == "train" else split
                        raise UserError(
                            f"data.{name}_fraction={fraction} leaves no {kind} examples (train has "
                            f"{count}): {change} it, or set it to 0"
                        )
        if self.train_fraction < 1:
            whole = splits["train"]
            # As a split is held out: of every class, whole groups, and of a series the end.
            _, splits["train"] = self._hold_out(whole, self.train_fraction)
            if not len(splits["train"]):
                raise UserError(
                    f"data.train_fraction={self.train_fraction} leaves none of {len(whole)} "
                    f"training examples: raise it"
                )
        return splits

    def fraction_path(self) -> str | None:
        """Returns the path to the data set whose `train_fraction` shortens the training split.

        It is empty for this one, and None where there is no such data set.
        """
        if type(self).splits is Data.splits:
            return ""
        if len(self.parts) != 1:
            return None
        ((name, inner),) = self.parts.items()
        path = inner.fraction_path()
        return path if path is None else f"{name}.{path}".rstrip(".")

    def fit(self) -> dict[str, Json]:
        """Returns what prediction needs to know of the training data, as JSON.

        That is how a file becomes an example and what outputs are called: scaling, vocabulary,
        `classes` in their order. By default it is `reads`, the kind of file: `image` with its
        `shape` [height, width, channels], null where the examples differ; `audio`, with its
        `sample_rate` and `dtype`; `text`, `bytes`, or null where none fits. Of a data set that
        wraps another it is what that fits, as `wrapped`.
        """
        known: dict[str, Json] = {"classes": list(self.output_names())}
        if self.wrapped is not None:
            return {**known, "wrapped": self.wrapped.fit()}
        train = self.splits()["train"]
        places = np.unique(np.linspace(0, len(train) - 1, 8).astype(int))
        examples = [train[int(place)] for place in places]
        return {**known, **describe_files(examples, audio_rate(self))}

    def fitted(self) -> dict[str, Json]:
        """Returns what was given to `with_fitted`, else `fit`."""
        return self.fit() if self.fitted_values is None else self.fitted_values

    @property
    def fitted_values(self) -> dict[str, Json] | None:
        """What was given to `with_fitted`."""
        return self.__dict__.get("_fitted")

    @property
    def fitted_wrapped(self) -> "Data":
        """The wrapped data set, with what was fitted of it if that is given.

        Raises:
          UserError: there is none.
        """
        if self.wrapped is None:
            raise UserError(f"{self.full_name()} wraps no data set")
        known = (self.fitted_values or {}).get("wrapped")
        return self.wrapped if known is None else self.wrapped.with_fitted(known)

    def with_fitted(self, values: Mapping[str, Json]) -> Self:
        """Returns a copy that reads files, and scales and numbers examples, as `values` say.

        Args:
          values: what `fit` returned; `reader` and `output_names` then read no training data. With
            the text of a saved `tokenizer`, neither does `tokenizer`.
        """
        known = copy.copy(self)
        known.__dict__["_fitted"] = dict(values)
        return known

    def reader(self) -> Reader:
        """Returns a function that reads a file as examples for prediction, before transforms.

        For data sets with `image` (height, width, channels) uint8, a file is one image, converted
        to their channels, and resized to their size if all images share one and no `Resize`
        follows. For data sets with `audio` (samples,) int16 or float32, it is one sound, brought to
        their sample rate. For data sets with `text`, it is one text, or a CSV file with a column
        `text`.
        Other data sets override this method.

        Returns:
          A function of a path, which raises UserError if it cannot read the file.

        Raises:
          UserError: the data set neither has images or texts nor overrides this method.
        """
        resized = any(isinstance(transform, Resize) for transform in self.transforms)
        read = file_reader(self.fitted(), resized)
        if read is None:
            raise UserError(
                f"{self.full_name()} does not say how a file becomes an example: define "
                f"{type(self).__name__}.reader"
            )
        return read

    @property
    def has_several_labels(self) -> bool:
        """Whether an example has any number of classes: its label is 0 or 1 for each."""
        return False

    @property
    def has_tokenizer(self) -> bool:
        """Whether the examples are tokenized texts, with an `encoding` field."""
        return isinstance(getattr(self, "encoding", None), Encoding)

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the examples; built once, and trained if it has to be.

        Raises:
          UserError: the examples are not tokenized texts.
        """
        return self._tokenizer

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs of a prediction: class names in the order of their ids.

        Empty if they have no names; by default those of the data set that this one wraps.
        """
        if self.fitted_values is not None and "classes" in self.fitted_values:
            return tuple(self.fitted_values["classes"])
        return () if self.wrapped is None else self.wrapped.output_names()

    def example_names(self, path: Path) -> Mapping[str, Sequence[Json]] | None:
        """Returns what tells the examples that `reader` returns of a file apart, by key.

        Empty if there is one; None: the rows of the file, if it is a table.
        """
        return None if self.wrapped is None else self.wrapped.example_names(path)

    def value_names(self, name: str) -> tuple[str, ...]:
        """Names of the values of an integer array of the examples, such as a group; or empty.

        By default those of the classes are known, and of a data set that this one wraps.
        """
        if name == self.array_names[1]:
            return self.output_names()
        return () if self.wrapped is None else self.fitted_wrapped.value_names(name)

    def needs(self) -> str:
        """What has to be there before the data can be read: a command, a package or a path.

        `nothing` for data that is always there, empty if that is not known; by default that of the
        data set that this one wraps.
        """
        return "" if self.wrapped is None else self.wrapped.needs()

    def input_columns(self) -> Mapping[str, Sequence[str]]:
        """Returns the names of the columns of inputs that were given as frames, by input."""
        return (self.fitted_values or {}).get("input_columns", {})

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Returns source, version and SHA-256 of a split's examples, and if so, `sampled`."""
        digest = hashlib.sha256()
        while isinstance(source, Subset):
            digest.update(np.ascontiguousarray(source.indices).tobytes())
            source = source.source
        digest.update(self.digest(source).encode())
        name, _, version = self.full_name().partition(":")
        found = {"source": name, "version": version, "sha256": digest.hexdigest()}
        return {**found, "sampled": True} if self.digest_is_sampled else found

    def digest(self, source: Source) -> str:
        """Returns a split's SHA-256: the source's `digest`, or a hash of all examples."""
        own = getattr(source, "digest", None)
        return hash_examples(source) if own is None else own()

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        saved = (self.fitted_values or {}).get("tokenizer")
        return self._make_tokenizer() if saved is None else read_tokenizer(saved)

    def _make_tokenizer(self) -> Tokenizer:
        raise UserError(
            f"{self.full_name()} has no tokenizer: its examples are not texts as tokens"
        )

    @property
    def group_name(self) -> str | None:
        """The array of groups, none of which is in two splits; None: there are no groups."""
        return getattr(self, "group", None)

    def _hold_out(self, source: Source, fraction: float) -> tuple[Source, Source]:
        groups = read_array(source, self.group_name) if self.group_name else None
        kept, held = hold_out(
            len(source),
            fraction,
            self.split_seed,
            ordered=self.ordered,
            labels=None if groups is not None else self._strata(source),
            groups=groups,
        )
        return Subset(source, kept), Subset(source, held)

    def _strata(self, source: Source) -> np.ndarray | None:
        """Returns the classes to hold out alike, or None."""
        if self.stratify is False or self.ordered:
            return None
        name = self.array_names[1]
        labels = read_array(source, name)
        if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iubUSO":
            return np.unique(labels, return_inverse=True)[1]
        if self.stratify:
            found = "no array" if labels is None else f"an array of {labels.dtype}"
            raise UserError(
                f"data.stratify needs classes, and {self.full_name()} has {found} {name!r}: set "
                f"data.stratify to False"
            )
        return None


def check_names(data: Data, name: str) -> None:
    """Raises a UserError unless a field of a data set is a tuple of different names."""
    names = getattr(data, name)
    if isinstance(names, str):
        raise UserError(f"data.{name} is a tuple of names, not {names!r}: write ({names!r},)")
    for column in names:
        if list(names).count(column) > 1:
            raise UserError(f"data.{name} holds {column!r} twice: take one out")


def check_label_columns(data: Data, name: str) -> None:
    """Raises a UserError unless a field is a tuple of different columns, one for each class."""
    check_names(data, name)
    if getattr(data, "label_delimiter", None) is not None:
        raise UserError(
            f"data.label_delimiter is for one column of labels, and data.{name} has "
            f"{len(getattr(data, name))}: set one of them"
        )


def location_paths(data: Data, path: str = "data") -> list[str]:
    """Paths of fields that only locate the bytes, in this data set and those it wraps."""
    found = [f"{path}.{name}" for name in data.locations]
    for name, value in data.parts.items():
        found += location_paths(value, f"{path}.{name}")
    return found


def check_transforms(transforms: Any, where: str) -> None:
    """Raises a UserError unless these are a sequence of functions, none of them a class."""
    if not isinstance(transforms, (tuple, list)):
        raise UserError(f"{where} must be a tuple of functions: write ({transforms!r},)")
    for index, transform in enumerate(transforms):
        if isinstance(transform, type):
            raise UserError(
                f"{where}.{index} is the class {transform.__name__}: write {transform.__name__}()"
            )
        if not callable(transform):
            raise UserError(f"{where}.{index} must be a function, not {transform!r:.40}")


def get_split(splits: Mapping[str, Any], name: str) -> Any:
    """Returns the split called `name`.

    Raises:
      UserError: there is no such split; suggests the nearest.
    """
    if name not in splits:
        known = ", ".join(splits)
        raise UserError(
            f"there is no split {name!r} (there are {known}){nearest(str(name), splits)}"
        )
    return splits[name]


def default_data_dir() -> Path:
    """Returns `TFDS_DATA_DIR` if set, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
