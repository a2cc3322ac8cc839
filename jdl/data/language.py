"""Tokenized long texts for language modeling."""

from dataclasses import dataclass, field

import numpy as np

from jdl.data.base import Data
from jdl.data.readers import Reader
from jdl.data.sources import Source
from jdl.data.text import read_texts
from jdl.data.tokenizers import Chars, Encoding, Tokenizer
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class Windows:
    """Windows of `length + 1` tokens of a long text."""

    tokens: np.ndarray  # (n,) int32
    sizes: np.ndarray  # bytes that each id stands for
    length: int
    starts: np.ndarray  # (windows,) positions of their first tokens
    begins: np.ndarray | None = None  # (windows,) bool, whether a stream begins; None: no `begins`

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` (length + 1,) int32, -1 beyond the end, and the `bytes` of all but the first."""
        window = np.full(self.length + 1, -1, np.int32)
        found = self.tokens[self.starts[index] :][: self.length + 1]
        window[: len(found)] = found
        example = {"tokens": window, "bytes": self.sizes[found[1:]].sum()}
        return example if self.begins is None else {**example, "begins": self.begins[index, ...]}


def window_starts(count: int, length: int, stride: int) -> np.ndarray:
    """Positions of windows, `stride` apart, that cover `count` tokens; the last is padded.

    With `stride == length` every token but the very first is predicted exactly once.
    """
    return np.arange(0, max(count - 1 - length, 0) + stride, stride)


def stream_starts(count: int, length: int, streams: int) -> np.ndarray:
    """Positions of windows of `count` tokens cut into streams; the last few are left over.

    Item `t * streams + i` is window t of stream i.
    """
    windows = (count - 1) // (length * streams)
    return length * (np.arange(windows)[:, None] + windows * np.arange(streams)).ravel()


@dataclass(frozen=True, kw_only=True)
class Tokens(Data):
    """A long text: windows `tokens` (length + 1,) and the number of `bytes` of their targets.

    A test split is appended to validation: one text, scored once. Ids of
    characters are ranks of those of the whole text in Unicode order; pieces are learned from the
    training text alone.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    encoding: Encoding = Chars()  # how text becomes tokens
    length: int = 64  # predicted tokens of a window
    stride: int = 16  # between training windows; `length` between others

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1 or self.stride < 1:
            raise UserError(f"Tokens needs length, stride >= 1, not {self.length}, {self.stride}")

    def splits(self) -> dict[str, Source]:
        """Returns `train` and `validation`.

        Raises:
          UserError: the text has only one split, or too little in one.
        """
        length, sizes, splits = self.length, self.tokenizer().token_bytes(), {}
        for name, tokens in _encoded(self.text, self.tokenizer()).items():
            starts = window_starts(len(tokens), length, self.stride if name == "train" else length)
            splits[name] = Windows(tokens, sizes, length, starts)
        return splits

    def fit(self) -> dict[str, Json]:
        """Returns nothing: `jdl generate` needs the tokenizer only."""
        return {}

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return no_reader(self)

    def _make_tokenizer(self) -> Tokenizer:
        return _built(self.text, self.encoding)


@dataclass(frozen=True, kw_only=True)
class Streams(Data):
    """A long text for models that carry state between batches.

    The training text is cut into as many streams as a batch has rows, and row i of each batch goes
    on where row i of the batch before ended; `begins` is True where it does not, at the start of
    an epoch. Splits and ids are those of `Tokens`. In validation, windows are scored one by one,
    each from the beginning: they are long, so that this costs little.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    encoding: Encoding = Chars()  # how text becomes tokens
    length: int = 64  # tokens of backpropagation through time
    num_streams: int = 32  # must equal the experiment's batch size
    validation_length: int = 1024  # predicted tokens of a validation window
    shuffle: bool = False  # streams are read in order

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length", "num_streams", "validation_length"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if self.shuffle:
            raise UserError("streams are read in order: data.shuffle must stay false")

    @property
    def required_batch_size(self) -> int:
        """One row per stream."""
        return self.num_streams

    def splits(self) -> dict[str, Source]:
        """Returns `train` and `validation`.

        Raises:
          UserError: the text has only one split, or is too short for a window in each stream.
        """
        tokens, sizes = _encoded(self.text, self.tokenizer()), self.tokenizer().token_bytes()
        train, validation = tokens["train"], tokens["validation"]
        starts = stream_starts(len(train), self.length, self.num_streams)
        if not len(starts):
            raise UserError(
                f"{self.full_name()} has {len(train)} tokens, too few for "
                f"{self.num_streams} streams of windows of {self.length}"
            )
        begins, length = np.arange(len(starts)) < self.num_streams, self.validation_length
        alone = window_starts(len(validation), length, length)
        return {
            "train": Windows(train, sizes, self.length, starts, begins),
            "validation": Windows(validation, sizes, length, alone, np.ones(len(alone), bool)),
        }

    def fit(self) -> dict[str, Json]:
        """Returns nothing: `jdl generate` needs the tokenizer only."""
        return {}

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return no_reader(self)

    def _make_tokenizer(self) -> Tokenizer:
        return _built(self.text, self.encoding)


def no_reader(data: Data) -> Reader:
    """Rejects prediction for files, undefined for language modeling.

    Raises:
      UserError: always.
    """
    raise UserError(
        f"{data.full_name()} is a text for language models, which `jdl predict` does not support: "
        f"use `jdl generate`"
    )


def _encoded(data: Data, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns the tokens of a text, (n,) int32, for `train` and `validation`.

    Raises:
      UserError: one of them is too short to predict a token.
    """
    found = {}
    for name, texts in _parts(data).items():
        parts = [np.array(tokenizer.encode(text), np.int32) for text in texts]
        found[name] = np.concatenate([np.zeros(0, np.int32), *parts])
        if len(found[name]) < 2:
            raise UserError(
                f"the text of split {name!r} of {data.full_name()} has {len(found[name])} tokens: "
                f"at least 2 are needed to predict one"
            )
    return found


def _built(data: Data, encoding: Encoding) -> Tokenizer:
    """Builds the tokenizer of a text; `Chars` takes the alphabet of all splits."""
    parts = _parts(data)
    known = parts["train"]
    return encoding.build(known + parts["validation"] if isinstance(encoding, Chars) else known)


def _parts(data: Data) -> dict[str, list[str]]:
    """Returns the texts of `train`, and those of all other splits as `validation`."""
    texts = {name: [text for text, _ in read_texts(source)] for name, source in data.load().items()}
    held_out = [texts[name] for name in ("validation", "test") if name in texts]
    if not held_out:
        raise UserError(f"{data.full_name()} has no validation text, only {', '.join(texts)}")
    return {"train": texts["train"], "validation": [text for each in held_out for text in each]}
