"""Base class of data sets: named splits of examples with their transforms."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from jdl.data.files import MODES, decode_image, read_texts
from jdl.data.tokenizers import Encoding, Tokenizer
from jdl.data.transforms import Resize
from jdl.errors import UserError, nearest
from jdl.typing import Batch, Keys

Example = Mapping[str, Any]
"""One example: arrays, numbers or strings by name."""

Transform = Callable[[Example], Example]
"""A deterministic function of one example on the host; run once if the split is in memory."""

DeviceTransform = Callable[[Batch, Keys | None], Batch]
"""A pure function of a batch in the compiled step, with one key per example, None in evaluation."""


Reader = Callable[[Path], dict[str, np.ndarray]]
"""Reads a file as examples without targets: arrays by name, examples along axis 0."""


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of a split, like `tfds.data_source`."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """The example at `index`."""
        ...


@dataclass(frozen=True)
class Subset:
    """A subset of the examples of a source."""

    source: Source
    indices: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` of the subset."""
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once; many sources read these faster."""
        return read_examples(self.source, [int(self.indices[i]) for i in indices])


def read_examples(source: Source, indices: Sequence[int]) -> list[Example]:
    """Returns the examples at `indices`, in one call if the source has `__getitems__`."""
    many = getattr(source, "__getitems__", None)
    return list(many(indices)) if many else [source[i] for i in indices]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set with its transforms. A subclass returns its splits from `load`.

    A split that the set lacks is held out of `train` with `split_seed`, whatever the run's seed.
    """

    transforms: tuple[Transform, ...] = ()  # on the host, per example
    device_transforms: tuple[DeviceTransform, ...] = ()  # in the compiled step, per batch
    pipeline: Literal["auto", "in_memory", "grain"] = "auto"  # auto: in memory up to 1 GiB
    test_fraction: float = 0.2  # of train held out as test if the set has none; 0: no split
    validation_fraction: float = 0.1  # of train, less test, held out as validation; 0: no split
    split_seed: int = 0  # of the held-out splits
    ordered: bool = False  # hold out the end, not a random part: for time series
    shuffle: bool = True  # train in a new order each epoch; False: in stored order

    locations: ClassVar[tuple[str, ...]] = ()
    """Fields that only locate the bytes; a resumed run compares the bytes in their place."""

    def __post_init__(self) -> None:
        for name in ("test_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"data.{name} is a share in [0, 1), not {getattr(self, name)}")

    @property
    def required_batch_size(self) -> int | None:
        """The batch size that the training order requires; None: any."""
        return None

    def load(self) -> dict[str, Source]:
        """Returns the splits that the data set itself has, including `train`."""
        raise NotImplementedError

    @property
    def wrapped(self) -> "Data | None":
        """The data set among the fields, from whose examples this one's are made; None: none."""
        values = (getattr(self, field.name) for field in fields(self))
        return next((value for value in values if isinstance(value, Data)), None)

    def full_name(self) -> str:
        """`NAME` or `NAME:VERSION` of the data set; by default of the one that it wraps."""
        if self.wrapped is None:
            raise NotImplementedError
        return self.wrapped.full_name()

    def splits(self) -> dict[str, Source]:
        """Returns `train`, `validation` and `test`, held out if missing.

        Raises:
          UserError: a split is empty, or a fraction leaves it without examples.
        """
        splits = dict(self.load())
        for name, source in splits.items():
            if not len(source):
                raise UserError(
                    f"split {name!r} of {self.full_name()} is empty: give it examples or remove it"
                )
        for name, fraction in (
            ("test", self.test_fraction),
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
        return splits

    def reader(self) -> Reader:
        """Returns a function that reads a file as examples for prediction, before transforms.

        For data sets with `image` (height, width, channels) uint8, a file is one image, converted
        to their channels, and resized to their size if all images share one and no `Resize`
        follows. For data sets with `text`, a file is one text, or a CSV file with a column `text`.
        Other data sets override this method.

        Returns:
          A function of a path, which raises UserError if it cannot read the file.

        Raises:
          UserError: the data set neither has images or texts nor overrides this method.
        """
        train = self.splits()["train"]
        places = np.unique(np.linspace(0, len(train) - 1, 8).astype(int))
        examples = [train[int(place)] for place in places]
        text = examples[0].get("text")
        if isinstance(text, (str, bytes)):
            return _text_reader(isinstance(text, bytes))
        images = [np.asarray(example.get("image")) for example in examples]
        if any(i.dtype != np.uint8 or i.ndim != 3 or i.shape[2] not in MODES for i in images):
            raise UserError(
                f"{self.full_name()} does not say how a file becomes an example: define "
                f"{type(self).__name__}.reader"
            )
        resized = any(isinstance(transform, Resize) for transform in self.transforms)
        return _image_reader({image.shape for image in images}, resized)

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
        return () if self.wrapped is None else self.wrapped.output_names()

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Returns source, version and SHA-256 of a split's examples."""
        digest = hashlib.sha256()
        while isinstance(source, Subset):
            digest.update(np.ascontiguousarray(source.indices).tobytes())
            source = source.source
        digest.update(self.digest(source).encode())
        name, _, version = self.full_name().partition(":")
        return {"source": name, "version": version, "sha256": digest.hexdigest()}

    def digest(self, source: Source) -> str:
        """Returns a split's SHA-256: the source's `digest`, or a hash of all examples."""
        own = getattr(source, "digest", None)
        if own is not None:
            return own()
        digest = hashlib.sha256()
        for i in range(len(source)):
            for name, value in sorted(source[i].items()):
                digest.update(name.encode())
                add_array(digest, np.asarray(value))
        return digest.hexdigest()

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._make_tokenizer()

    def _make_tokenizer(self) -> Tokenizer:
        raise UserError(
            f"{self.full_name()} has no tokenizer: its examples are not texts as tokens"
        )

    def _hold_out(self, source: Source, fraction: float) -> tuple[Source, Source]:
        count = len(source)
        order = np.arange(count)
        if not self.ordered:
            order = np.random.default_rng(self.split_seed).permutation(count)
        cut = count - round(count * fraction)
        return Subset(source, np.sort(order[:cut])), Subset(source, np.sort(order[cut:]))


def _text_reader(binary: bool) -> Reader:
    def read(path: Path) -> dict[str, np.ndarray]:
        texts = read_texts(path, "text")
        return {"text": np.array([t.encode() if binary else t for t in texts], object)}

    return read


def _image_reader(shapes: set[tuple[int, ...]], resized: bool) -> Reader:
    height, width, channels = min(shapes)

    def read(path: Path) -> dict[str, np.ndarray]:
        example = {"image": decode_image(path, MODES[channels])}
        if len(shapes) == 1 and not resized:
            example = Resize(height=height, width=width)(example)
        return {"image": example["image"][None]}

    return read


def location_paths(data: Data, path: str = "data") -> list[str]:
    """Paths of fields that only locate the bytes, in this data set and those it wraps."""
    found = [f"{path}.{name}" for name in data.locations]
    for field in fields(data):
        value = getattr(data, field.name)
        if isinstance(value, Data):
            found += location_paths(value, f"{path}.{field.name}")
    return found


def get_split(splits: Mapping[str, Any], name: str) -> Any:
    """Returns the split called `name`.

    Raises:
      UserError: there is no such split; suggests the nearest.
    """
    if name not in splits:
        known = ", ".join(splits)
        raise UserError(f"there is no split {name!r} (there are {known}){nearest(name, splits)}")
    return splits[name]


def add_array(digest: Any, array: np.ndarray) -> None:
    """Updates a hash with dtype, shape and contents of an array; object arrays item by item."""
    digest.update(f" {array.dtype.str} {array.shape}".encode())
    if array.dtype.kind != "O":
        digest.update(array.tobytes())
        return
    for item in array.flat:
        if isinstance(item, bytes):
            digest.update(item)
        elif isinstance(item, str) or item is None:
            digest.update(repr(item).encode())
        else:
            add_array(digest, np.asarray(item))


def default_data_dir() -> Path:
    """Returns `TFDS_DATA_DIR` if set, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
