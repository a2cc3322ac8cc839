"""Sounds with transcripts as tokens, for speech recognition."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from jdl.data.base import Data
from jdl.data.readers import Reader, audio_rate
from jdl.data.sources import Example, Source, read_array, read_examples
from jdl.data.text import as_text
from jdl.data.tokenizers import Chars, Encoding, Tokenizer
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class TokenizedSpeech:
    """Examples with the tokens of their transcripts."""

    source: Source
    tokens: np.ndarray  # (n, length) int32

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` with its `tokens`, without its text."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once."""
        found = zip(indices, read_examples(self.source, indices), strict=True)
        return [
            {**{k: v for k, v in example.items() if k != "text"}, "tokens": self.tokens[index]}
            for index, example in found
        ]


@dataclass(frozen=True, kw_only=True)
class Speech(Data):
    """Sounds with transcripts: `audio` (samples,) and `tokens` (length,) int32, for `CTC`.

    Token i of the tokenizer has the number i + 1, since 0 is the blank of CTC, and padding: a model
    has one class more than the tokenizer. Splits are those of `speech`; the tokenizer and the
    n-gram prior are learned from its training transcripts alone.
    """

    speech: Data = field(kw_only=False)  # the set; its examples have `audio` and `text`
    encoding: Encoding = Chars()  # how transcripts become tokens
    length: int = 64  # most tokens of a transcript
    ngram_order: int = 3  # tokens of an n-gram of the prior for decoding

    array_names: ClassVar[tuple[str, str]] = ("audio", "tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1 or self.ngram_order < 1:
            raise UserError(
                f"data.length and data.ngram_order must be at least 1, not {self.length} and "
                f"{self.ngram_order}"
            )

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the set, with tokens.

        Raises:
          UserError: a transcript has more than `length` tokens, or a character that those of
            training have not.
        """
        splits = self.fitted_wrapped.splits()
        return {name: self._tokenized(source, name) for name, source in splits.items()}

    def convert(self, source: Source) -> TokenizedSpeech:
        """See `Data.convert`."""
        return self._tokenized(source, "further")

    def fit(self) -> dict[str, Json]:
        """Returns what is fitted of the set, and `ngrams` of the training transcripts."""
        audio_rate(self)  # checks it
        return {**super().fit(), "ngrams": self._counted()}

    @functools.cached_property
    def ngrams(self) -> list[list[int]]:
        """The n-grams of the training transcripts: up to `ngram_order` token numbers, and counts.

        0 stands before the first and behind the last token of a transcript.
        """
        known = (self.fitted_values or {}).get("ngrams")
        return self._counted() if known is None else known

    def reader(self) -> Reader:
        """The reader of the set."""
        return self.fitted_wrapped.reader()

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Fingerprint of the set and of the tokens."""
        assert isinstance(source, TokenizedSpeech)
        found = self.speech.fingerprint(source.source)
        digest = hashlib.sha256(found["sha256"].encode() + source.tokens.tobytes())
        return {**found, "sha256": digest.hexdigest()}

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of token numbers (n,), of which 0 stand for nothing."""
        return self.tokenizer().decode([int(token) - 1 for token in tokens if token > 0])

    def _make_tokenizer(self) -> Tokenizer:
        return self.encoding.build(_texts(self.speech.splits()["train"]))

    def _tokenized(self, source: Source, split: str) -> TokenizedSpeech:
        texts, encode = _texts(source), self.tokenizer().encode
        tokens = np.zeros((len(texts), self.length), np.int32)
        for index, text in enumerate(texts):
            try:
                found = encode(text)
            except UserError as error:
                raise UserError(f"{_place(source, index, split)}: {error}") from error
            if len(found) > self.length:
                raise UserError(
                    f"{_place(source, index, split)} has {len(found)} tokens, more than data.length"
                    f" = {self.length}: raise that"
                )
            tokens[index, : len(found)] = np.array(found, np.int32) + 1
        return TokenizedSpeech(source, tokens)

    def _counted(self) -> list[list[int]]:
        """Returns each n-gram of the training transcripts with its count last."""
        tokens = self._tokenized(self.speech.splits()["train"], "train").tokens
        order, counts = self.ngram_order, dict[tuple[int, ...], int]()
        for row in tokens:
            padded = [0] * (order - 1) + row[row > 0].tolist() + [0]
            for end in range(order, len(padded) + 1):
                gram = tuple(padded[end - order : end])
                counts[gram] = counts.get(gram, 0) + 1
        return [[*gram, count] for gram, count in sorted(counts.items())]


def _texts(source: Source) -> list[str]:
    found = read_array(source, "text")
    if found is None:
        raise UserError("the examples have no 'text', which Speech makes tokens of")
    return [as_text(text) for text in found.tolist()]


def _place(source: Source, index: int, split: str) -> str:
    """Returns where a transcript is: the file of its sound, if it is known."""
    file = read_examples(source, [index])[0].get("file")
    return f"transcript {index} of split {split!r}" + (f", of {file}" if file else "")
