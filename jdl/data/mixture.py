"""Several data sets in one batch, each with its own share."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from jdl.data.base import Data
from jdl.data.examples import apply_transforms
from jdl.data.order import Mixing
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source, read_examples
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A data set in a `Mixture`."""

    name: str = field(kw_only=False)  # of the stream, and of an array of the batch
    data: Data = field(kw_only=False)  # the set; its host transforms are applied first
    weight: float = 1.0  # its share of a batch, relative to the other streams'
    split: str = "train"  # its training examples; of a TFDS set any that it has
    names: tuple[str, ...] = ()  # arrays to keep of an example; (): all

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(
                f"the weight of stream {self.name!r} is finite and above 0, not {self.weight}"
            )
        if self.data.device_transforms or self.data.random_transform:
            what = "device_transforms" if self.data.device_transforms else "random transforms"
            raise UserError(
                f"stream {self.name!r} has {what} of its own: list them in those of the Mixture, "
                f"which are applied to whole batches"
            )
        if isinstance(self.names, str):
            raise UserError(f"names of stream {self.name!r} are a tuple: write ({self.names!r},)")


@dataclass(frozen=True, kw_only=True)
class Mixture(Data):
    """Batches of the examples of several data sets, such as labeled and unlabeled ones.

    `Mixture((Stream("labeled", few), Stream("unlabeled", many, weight=7)))`. Each stream has its
    share of every batch, exactly if all of these are whole numbers, else up to one example, or two
    with more than two streams. A bool array of each stream's name says whose a row is; arrays that
    a stream lacks are zeros there. Each stream is shuffled by itself, and one that is used up
    begins again in a new order: an epoch ends when every example of every stream was seen.
    Evaluation splits, and class names, are those of the first stream.
    """

    streams: tuple[Stream, ...] = field(kw_only=False)  # the first has the evaluation splits

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stream.name for stream in self.streams]
        if len(names) < 2:
            raise UserError(f"a Mixture has two streams or more, not {len(names)}")
        for name in names:
            if names.count(name) > 1 or name == "mask":
                what = "two streams" if names.count(name) > 1 else "a stream"
                raise UserError(f"data.streams has {what} named {name!r}: rename one")

    @property
    def wrapped(self) -> Data:
        """The data set of the first stream."""
        return self.streams[0].data

    @property
    def parts(self) -> Mapping[str, Data]:
        """The data sets of the streams, by path."""
        return {f"streams.{i}.data": stream.data for i, stream in enumerate(self.streams)}

    def splits(self) -> dict[str, Source]:
        """Returns the mixed training split, and the other splits of the first stream.

        Raises:
          UserError: a stream is empty, or two streams do not fit together.
        """
        first, *others = self.streams
        splits = self.fitted_wrapped.splits()
        of_first = splits["train"] if first.split == "train" else first.data.split(first.split)
        sources = [of_first, *(each.data.split(each.split) for each in others)]
        for stream, source in zip(self.streams, sources, strict=True):
            if not len(source):
                raise UserError(f"stream {stream.name!r} has no examples in {stream.split!r}")
        read = [Kept(*each) for each in zip(self.streams, sources, strict=True)]
        missing = _missing(self.streams, [each[0] for each in read])
        total = sum(map(_share, self.streams))
        shares = tuple(_share(stream) / total for stream in self.streams)
        mixing = Mixing(tuple(map(len, sources)), shares)
        train = Mixed(tuple(read), missing, mixing)
        held = {name: source for name, source in splits.items() if name != "train"}
        alone = Mixing((1,), (Fraction(1),))
        kept = {name: Mixed((Kept(first, x),), missing, alone) for name, x in held.items()}
        return {"train": train, **kept}

    def full_name(self) -> str:
        """The names of the streams' sets."""
        return "+".join(stream.data.full_name() for stream in self.streams)

    def reader(self) -> Reader:
        """Delegates to the first stream."""
        return self.fitted_wrapped.reader()

    def needs(self) -> str:
        """What the streams need."""
        needs = dict.fromkeys(stream.data.needs() for stream in self.streams)
        return ", ".join(each for each in needs if each not in ("", "nothing")) or "nothing"

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Returns what `Data.fingerprint` does, over all streams of a split."""
        assert isinstance(source, Mixed)
        prints = [each.stream.data.fingerprint(each.source) for each in source.sources]
        digest = hashlib.sha256()
        for each, own in zip(source.sources, prints, strict=True):
            digest.update(f"{each.stream.name} {own['sha256']}\n".encode())
        found = {"source": self.full_name(), "version": "", "sha256": digest.hexdigest()}
        return {**found, "sampled": True} if any("sampled" in own for own in prints) else found


@dataclass(frozen=True)
class Kept:
    """The examples of a stream after its host transforms."""

    stream: Stream
    source: Source

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of the example at `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Several examples at once."""
        return [self._read(example) for example in read_examples(self.source, indices)]

    def _read(self, example: Example) -> dict[str, np.ndarray]:
        arrays, names = apply_transforms(self.stream.data, example), self.stream.names
        for name in names:
            if name not in arrays:
                raise UserError(
                    f"stream {self.stream.name!r} has no array {name!r} (it has "
                    f"{', '.join(arrays)}): correct its names"
                )
        return {name: arrays[name] for name in names} if names else arrays


@dataclass(frozen=True)
class Mixed:
    """The examples of several streams, one stream after the other, all with the same arrays."""

    sources: tuple[Kept, ...]
    blank: Mapping[str, np.ndarray]  # the arrays of an example of no stream
    mixing: Mixing

    def __len__(self) -> int:
        """Number of examples."""
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The example at `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Several examples at once."""
        found: dict[int, dict[str, np.ndarray]] = {}
        places, begin = np.asarray(indices), 0
        for source in self.sources:
            own = places[(places >= begin) & (places < begin + len(source))]
            if own.size:
                examples = source.__getitems__((own - begin).tolist())
                flag = {source.stream.name: np.asarray(True)}
                each = ({**self.blank, **flag, **example} for example in examples)
                found |= dict(zip(own.tolist(), each, strict=True))
            begin += len(source)
        return [found[index] for index in places.tolist()]


def _share(stream: Stream) -> Fraction:
    """Returns the weight of a stream as a quotient of small integers."""
    return Fraction(stream.weight).limit_denominator(10_000)


def _missing(
    streams: Sequence[Stream], examples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns a zero of each array of all streams, and False for each stream.

    Raises:
      UserError: an array differs between streams, or classes do.
    """
    blank: dict[str, np.ndarray] = {}
    owners: dict[str, Stream] = {}
    target = streams[0].data.array_names[1]
    for stream, example in zip(streams, examples, strict=True):
        for name, array in example.items():
            zero = np.zeros(array.shape, array.dtype)
            other = owners.setdefault(name, stream)
            first = blank.setdefault(name, zero)
            if (first.shape, first.dtype) != (zero.shape, zero.dtype):
                raise UserError(
                    f"{name!r} is {first.dtype}{list(first.shape)} in stream {other.name!r} and "
                    f"{zero.dtype}{list(zero.shape)} in {stream.name!r}: make them alike in the "
                    f"transforms of their data, or keep other arrays with names"
                )
            if name == target and (wrong := _other_classes(other, stream)):
                raise UserError(wrong)
    for stream in streams:
        if stream.name in blank:
            raise UserError(
                f"stream {stream.name!r} has the name of an array of the data: rename the stream"
            )
    return {**blank, **{stream.name: np.asarray(False) for stream in streams}}


def _other_classes(one: Stream, other: Stream) -> str:
    """Returns what is wrong if two streams number other classes."""
    names = [stream.data.output_names() for stream in (one, other)]
    if names[0] == names[1] or not all(names):
        return ""
    return (
        f"streams {one.name!r} and {other.name!r} number other classes ({', '.join(names[0][:5])} "
        f"and {', '.join(names[1][:5])}): keep the labels of one of them only, with names"
    )
