"""Text as numbers: words of labelled texts, characters of a long one."""

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data, Reader, Source
from jdl.errors import UserError

FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
"""What Keras' `Tokenizer` takes out of a text by default; apostrophes stay."""

PADDING, START, UNKNOWN = 0, 1, 2
"""Ids before those of words."""


def words(text: str) -> list[str]:
    """A text's words: lower case, without `FILTERS`, split at spaces."""
    return text.lower().translate(str.maketrans(FILTERS, " " * len(FILTERS))).split()


def rank(texts: Iterable[str], size: int) -> dict[str, int]:
    """Ids of the most frequent words, from 3 to `size - 1`; ties by first appearance."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(words(text))
    kept = counts.most_common(max(size - UNKNOWN - 1, 0))
    return {word: UNKNOWN + 1 + index for index, (word, _) in enumerate(kept)}


def encode(text: str, ids: Mapping[str, int], length: int) -> np.ndarray:
    """Ids (length,) int32 with `START` in front; what is too long loses its beginning."""
    found = [START, *(ids.get(word, UNKNOWN) for word in words(text))][-length:]
    return np.array([PADDING] * (length - len(found)) + found, np.int32)


@dataclass(frozen=True, kw_only=True)
class Words(Data):
    """Labelled texts as word ids, as in Keras' IMDb example: `tokens` (length,) and `label`.

    Words are ranked by frequency on the training text alone. Held-out splits are those of `text`.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text` and `label`
    vocabulary: int = 10_000  # ids, of which 0 pads, 1 starts a text and 2 stands for other words
    length: int = 200  # ids of a text; it is padded and cut at the front

    def splits(self) -> dict[str, Source]:
        """The splits of the text, encoded."""
        texts = {name: list(_read(source)) for name, source in self.text.splits().items()}
        ids = rank((text for text, _ in texts["train"]), self.vocabulary)
        return {
            name: ArraySource(
                {
                    "tokens": np.stack([encode(text, ids, self.length) for text, _ in examples]),
                    "label": np.array([label for _, label in examples], np.int32),
                }
            )
            for name, examples in texts.items()
        }

    def reader(self) -> Reader:
        """Of the files that the text set reads; ids are those of training."""
        read = self.text.reader()
        known = (text for text, _ in _read(self.text.splits()["train"]))
        ids = rank(known, self.vocabulary)

        def encoded(path: Path) -> dict[str, np.ndarray]:
            texts = map(_text, read(path)["text"])
            return {"tokens": np.stack([encode(text, ids, self.length) for text in texts])}

        return encoded

    def output_names(self) -> tuple[str, ...]:
        """Those of the text."""
        return self.text.output_names()

    def describe(self) -> str:
        """That of the text."""
        return self.text.describe()


@dataclass(frozen=True)
class Windows:
    """Windows of a long text, `length + 1` tokens that begin `stride` apart; the last is padded.

    With `stride == length` every token but the very first is predicted exactly once.
    """

    tokens: np.ndarray  # (n,) int32
    length: int
    stride: int

    def __len__(self) -> int:
        """Number of windows."""
        rest = max(len(self.tokens) - 1 - self.length, 0)
        return -(-rest // self.stride) + 1 if len(self.tokens) > 1 else 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` (length + 1,) int32, -1 beyond the end."""
        window = np.full(self.length + 1, -1, np.int32)
        found = self.tokens[index * self.stride :][: self.length + 1]
        window[: len(found)] = found
        return {"tokens": window}


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
        texts = {name: "".join(t for t, _ in _read(s)) for name, s in self.text.load().items()}
        held_out = [texts[name] for name in ("validation", "test") if name in texts]
        if not held_out:
            raise UserError(f"{self.describe()} has no validation text beside {', '.join(texts)}")
        parts = {"train": texts["train"], "validation": "".join(held_out)}
        ids = {c: i for i, c in enumerate(sorted(set("".join(parts.values()))))}
        tokens = {n: np.array([ids[c] for c in text], np.int32) for n, text in parts.items()}
        return {
            "train": Windows(tokens["train"], self.length, self.stride),
            "validation": Windows(tokens["validation"], self.length, self.length),
        }

    def reader(self) -> Reader:
        """None: there is no one prediction for a file.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"{self.describe()} is a text for language models: predict gives one prediction for "
            f"each example of a file, and does not continue texts"
        )

    def describe(self) -> str:
        """That of the text."""
        return self.text.describe()


def _read(source: Source) -> Iterable[tuple[str, Any]]:
    for index in range(len(source)):
        example = source[index]
        yield _text(example["text"]), example.get("label")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
