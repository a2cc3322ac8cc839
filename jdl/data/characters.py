"""Long texts as the ids of their characters, for language modelling."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jdl.data.base import Data, Reader, Source
from jdl.data.text import read_texts
from jdl.data.tokenizers import Alphabet
from jdl.errors import UserError


@dataclass(frozen=True)
class Windows:
    """Windows of a long text, `length + 1` tokens that begin `stride` apart; the last is padded.

    With `stride == length` every token but the very first is predicted exactly once.
    """

    tokens: np.ndarray  # (n,) int32
    length: int
    stride: int
    begins: bool = False  # say of each that it `begins` a stream, as in `SideBySide`

    def __len__(self) -> int:
        """Number of windows."""
        rest = max(len(self.tokens) - 1 - self.length, 0)
        return -(-rest // self.stride) + 1 if len(self.tokens) > 1 else 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` (length + 1,) int32, -1 beyond the end."""
        window = np.full(self.length + 1, -1, np.int32)
        found = self.tokens[index * self.stride :][: self.length + 1]
        window[: len(found)] = found
        return {"tokens": window} | ({"begins": np.array(True)} if self.begins else {})


@dataclass(frozen=True, kw_only=True)
class Characters(Data):
    """A long text by characters: windows `tokens` (length + 1,) for language modelling.

    Where the set has a test split it is joined to validation: one text, scored once. Ids are the
    ranks of the characters of the whole text in Unicode order.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    length: int = 64  # characters that are predicted in a window
    stride: int = 16  # between the beginnings of training windows; of others it is `length`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1 or self.stride < 1:
            raise UserError(
                f"Characters needs length, stride >= 1, not {self.length}, {self.stride}"
            )

    def splits(self) -> dict[str, Source]:
        """`train` and `validation`.

        Raises:
          UserError: the text has one split only.
        """
        tokens = _characters(self.text)
        return {
            "train": Windows(tokens["train"], self.length, self.stride),
            "validation": Windows(tokens["validation"], self.length, self.length),
        }

    def alphabet(self) -> str:
        """What each id stands for, in order; the text is read again."""
        return _alphabet(_parts(self.text))

    def tokenizer(self) -> Alphabet:
        """Of the alphabet; the text is read again."""
        return Alphabet(self.alphabet())

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return _no_reader(self)

    def describe(self) -> str:
        """That of the text."""
        return self.text.describe()


@dataclass(frozen=True)
class SideBySide:
    """A text cut into streams, of which each row of a batch reads one, window after window.

    Example `t * streams + i` is window t of stream i; the text's last few tokens are left over.
    """

    tokens: np.ndarray  # (n,) int32
    length: int
    streams: int

    def __len__(self) -> int:
        """Number of windows in all streams."""
        return max(len(self.tokens) - 1, 0) // (self.length * self.streams) * self.streams

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` (length + 1,) int32, and whether with them a stream `begins`, a bool."""
        window, stream = divmod(index, self.streams)
        start = (stream * len(self) // self.streams + window) * self.length
        found = self.tokens[start : start + self.length + 1]
        return {"tokens": found, "begins": np.array(window == 0)}


@dataclass(frozen=True, kw_only=True)
class Streams(Data):
    """A long text by characters, for models that carry their state from batch to batch.

    The training text is cut into as many streams as a batch has rows, and row i of each batch goes
    on where row i of the batch before ended; `begins` is True where it does not, at the start of
    an epoch. Splits and ids are those of `Characters`. In validation, windows are scored one by
    one, each from the beginning: they are long, so that this costs little.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    length: int = 64  # characters from one cut of the gradient to the next
    streams: int = 32  # that lie side by side: the experiment's batch size
    validation_length: int = 1024  # characters that are predicted in a window of validation
    shuffle: bool = False  # streams are read in order

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length", "streams", "validation_length"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if self.shuffle:
            raise UserError("streams are read in order: data.shuffle must stay false")

    @property
    def batch_size(self) -> int:
        """A row for each stream."""
        return self.streams

    def splits(self) -> dict[str, Source]:
        """`train` and `validation`.

        Raises:
          UserError: the text has one split only, or is too short for a window in each stream.
        """
        tokens = _characters(self.text)
        train = SideBySide(tokens["train"], self.length, self.streams)
        if not len(train):
            raise UserError(
                f"{self.describe()} has {len(tokens['train'])} characters, too few for "
                f"{self.streams} streams of windows of {self.length}"
            )
        length = self.validation_length
        return {
            "train": train,
            "validation": Windows(tokens["validation"], length, length, begins=True),
        }

    def tokenizer(self) -> Alphabet:
        """Of the text's characters; the text is read again."""
        return Alphabet(_alphabet(_parts(self.text)))

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return _no_reader(self)

    def describe(self) -> str:
        """That of the text."""
        return self.text.describe()


def _characters(data: Data) -> dict[str, np.ndarray]:
    """The ids of a text's characters, (n,) int32 for `train` and for `validation`."""
    parts = _parts(data)
    ids = {c: i for i, c in enumerate(_alphabet(parts))}
    return {name: np.array([ids[c] for c in text], np.int32) for name, text in parts.items()}


def _alphabet(parts: Mapping[str, str]) -> str:
    """The characters of a text in the order of their ids."""
    return "".join(sorted(set("".join(parts.values()))))


def _parts(data: Data) -> dict[str, str]:
    """The text of `train`, and that of all other splits as `validation`."""
    texts = {name: "".join(t for t, _ in read_texts(s)) for name, s in data.load().items()}
    held_out = [texts[name] for name in ("validation", "test") if name in texts]
    if not held_out:
        raise UserError(f"{data.describe()} has no validation text beside {', '.join(texts)}")
    return {"train": texts["train"], "validation": "".join(held_out)}


def _no_reader(data: Data) -> Reader:
    """Of texts there is no one prediction for a file."""
    raise UserError(
        f"{data.describe()} is a text for language models: predict gives one prediction for each "
        f"example of a file, and does not continue texts"
    )
