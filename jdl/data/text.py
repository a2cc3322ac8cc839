"""Labeled texts as word ids."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.conversion import class_labels, to_numbers
from jdl.data.readers import Reader
from jdl.data.sources import Source
from jdl.errors import UserError, first_line
from jdl.typing import Json

FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
"""What Keras' `Tokenizer` takes out of a text by default; apostrophes stay."""

PADDING, START, UNKNOWN = 0, 1, 2
"""Ids before those of words."""


def split_words(text: str) -> list[str]:
    """Returns a text's words: lower case, without `FILTERS`, split at spaces only."""
    spaced = text.lower().translate(str.maketrans(FILTERS, " " * len(FILTERS)))
    return [word for word in spaced.split(" ") if word]


def build_vocabulary(texts: Iterable[str], size: int) -> dict[str, int]:
    """Returns ids of the most frequent words, from 3 to `size - 1`; ties by first appearance."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(split_words(text))
    kept = counts.most_common(max(size - UNKNOWN - 1, 0))
    return _word_ids([word for word, _ in kept])


def encode_words(text: str, ids: Mapping[str, int], length: int) -> np.ndarray:
    """Returns ids (length,) int32 after `START`, truncated at the front."""
    found = [START, *(ids.get(word, UNKNOWN) for word in split_words(text))][-length:]
    return np.array([PADDING] * (length - len(found)) + found, np.int32)


@dataclass(frozen=True, kw_only=True)
class Words(Data):
    """Labeled texts as word ids, as in Keras' IMDb example: `tokens` (length,) and `label`.

    Words are ranked by frequency on the training text alone. Held-out splits are those of `text`.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text` and `label`
    vocab_size: int = 10_000  # with 0 for padding, 1 for the start, 2 for other words
    length: int = 200  # ids of a text; padded and truncated at the front

    array_names: ClassVar[tuple[str, str]] = ("tokens", "label")

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the text, encoded.

        Raises:
          UserError: a text has no label, or one that does not fit into 32 bits.
        """
        texts = self._texts()
        known = self.fitted_values or self._fit(texts)
        return {name: self._encoded(name, examples, known) for name, examples in texts.items()}

    def convert(self, source: Source) -> ArraySource:
        """See `Data.convert`."""
        known = self.fitted_values or self._fit(self._texts())
        return self._encoded("further", list(read_texts(source)), known)

    def fit(self) -> dict[str, Json]:
        """Returns `words` in the order of their ids, `classes`, and what is `wrapped`."""
        found = self._fit(self._texts())
        classes = found["classes"] or list(self.text.output_names())
        return {**found, "classes": classes, "wrapped": self.text.fit()}

    def vocabulary_words(self) -> tuple[str, ...]:
        """Returns the word of each id, in order; reads the training text again."""
        return ("(padding)", "(start)", "(unknown)", *self.fitted()["words"])

    def reader(self) -> Reader:
        """Returns the reader of the text set, with the training ids."""
        fitted = self.fitted()
        read = self.text.with_fitted(fitted["wrapped"]).reader()
        ids = _word_ids(fitted["words"])

        def encoded(path: Path) -> dict[str, np.ndarray]:
            texts = map(as_text, read(path)["text"])
            return {"tokens": np.stack([encode_words(text, ids, self.length) for text in texts])}

        return encoded

    def output_names(self) -> tuple[str, ...]:
        """Output names of the text, or the words that label it."""
        return tuple(self.fitted()["classes"])

    def _encoded(
        self, split: str, examples: Sequence[tuple[str, Any]], known: Mapping[str, Json]
    ) -> ArraySource:
        """Returns the texts of a split as ids of words."""
        ids, where = _word_ids(known["words"]), f"{self.full_name()}: split {split!r}: 'label'"
        tokens = [encode_words(text, ids, self.length) for text, _ in examples]
        labels = [label for _, label in examples]
        several = self.text.has_several_labels
        numbers = np.stack(labels) if several else _numbers(labels, where, known["classes"])
        return ArraySource({"tokens": np.stack(tokens), "label": numbers})

    def _texts(self) -> dict[str, list[tuple[str, Any]]]:
        """Returns texts and labels by split."""
        splits = self.fitted_wrapped.splits()
        texts = {name: list(read_texts(source)) for name, source in splits.items()}
        if any(label is None for _, label in texts["train"]):
            raise UserError(f"the texts of {self.full_name()} have no 'label'")
        return texts

    def _fit(self, texts: Mapping[str, list[tuple[str, Any]]]) -> dict[str, Json]:
        ids = build_vocabulary((text for text, _ in texts["train"]), self.vocab_size)
        labels = [label for examples in texts.values() for _, label in examples]
        several = self.text.has_several_labels
        found = None if several else class_labels(labels, f"{self.full_name()}: 'label'")
        return {"words": list(ids), "classes": list(found.names) if found else []}


def _numbers(labels: Sequence[Any], where: str, classes: Sequence[str]) -> np.ndarray:
    """Returns labels (n,): class numbers int32, or real numbers float32."""
    found = class_labels(labels, where, tuple(classes) or None)
    return found.ids if found else to_numbers(labels, where).astype(np.float32)


def _word_ids(words: Sequence[str]) -> dict[str, int]:
    return {word: UNKNOWN + 1 + index for index, word in enumerate(words)}


def read_texts(source: Source) -> Iterable[tuple[str, Any]]:
    """Returns each example's text and label, None if it has none.

    Raises:
      UserError: an example has no text, or invalid UTF-8.
    """
    for index in range(len(source)):
        example = source[index]
        if "text" not in example:
            known = ", ".join(map(repr, example))
            raise UserError(
                f"the examples have no 'text' to read (they have {known}): set data.text to a set "
                f"of texts"
            )
        yield as_text(example["text"]), example.get("label")


def as_text(value: Any) -> str:
    """Decodes a text given as a string or UTF-8 bytes.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError as error:
        raise UserError(f"a text is not UTF-8: {first_line(error)}") from error
    return text
