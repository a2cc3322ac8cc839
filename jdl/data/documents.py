"""Tokenized texts with begin and end tokens: packed in rows, or one per row."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from jdl.data.base import Data
from jdl.data.language import no_reader
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source, read_examples
from jdl.data.text import as_text, read_texts
from jdl.data.tokenizers import BPE, Encoding, SubwordTokenizer, Tokenizer, special_ids
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class PackedDocuments:
    """Concatenated documents in windows of `length + 1` tokens with stride `length`.

    Every token but those that begin a document is predicted exactly once, from what its window
    shows of the document before it.
    """

    tokens: np.ndarray  # (n,) int32
    documents: np.ndarray  # (n,) int32, document index of each token
    sizes: np.ndarray  # bytes that each id stands for
    length: int

    def __len__(self) -> int:
        """Number of windows."""
        return -(-max(len(self.tokens) - 1, 0) // self.length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` and `segments` (length + 1,) int32, -1 beyond the end, and `bytes`."""
        part = slice(index * self.length, (index + 1) * self.length + 1)
        found, segments = self.tokens[part], self.documents[part] - self.documents[part][0]
        predicted = found[1:][segments[1:] == segments[:-1]]
        fill = (0, self.length + 1 - len(found))
        return {
            "tokens": np.pad(found, fill, constant_values=-1),
            "segments": np.pad(segments, fill, constant_values=-1),
            "bytes": self.sizes[predicted].sum(),
        }


@dataclass(frozen=True, kw_only=True)
class Documents(Data):
    """Packed texts for language modeling, without padding or attention across texts.

    Examples are windows `tokens` (length + 1,) over all texts, `<bos>` before and `<eos>` behind
    each, and `segments` (length + 1,), which tell them apart; what follows an `<eos>` is not
    predicted. A text that continues in the next window is read there as if it began. `bytes` is
    what the predicted tokens stand for, `<eos>` for none. Splits are those of `text`; pieces are
    learned from its training texts alone.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    encoding: Encoding = BPE()  # how text becomes tokens
    length: int = 128  # input tokens of a window

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise UserError(f"data.length must be at least 1, not {self.length}")

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the text, packed."""
        return {name: self.convert(source) for name, source in self.text.splits().items()}

    def fit(self) -> dict[str, Json]:
        """Returns nothing: `jdl generate` needs the tokenizer only."""
        return {}

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return no_reader(self)

    def _make_tokenizer(self) -> Tokenizer:
        return _with_specials(self.encoding, self.text, ("bos", "eos"))

    def convert(self, source: Source) -> PackedDocuments:
        """See `Data.convert`."""
        encode, sizes = self.tokenizer().encode, self.tokenizer().token_bytes()
        ids = special_ids(self.tokenizer())
        bos, eos = ids["bos"], ids["eos"]
        rows = [np.array([bos, *encode(t), eos], np.int32) for t, _ in read_texts(source)]
        numbers = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
        return PackedDocuments(np.concatenate(rows), numbers, sizes, self.length)


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as a fixed number of tokens, encoded on access."""

    source: Source
    tokenizer: Tokenizer  # with a token `<pad>`
    length: int
    truncation_side: Literal["right", "left"]
    classes: tuple[str, ...] = ()  # that label the texts, if words do

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """`tokens` (length,) int32, and `label` if the text has one."""
        return self._encoded(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once."""
        return [self._encoded(example) for example in read_examples(self.source, indices)]

    def tokens(self, text: Any) -> np.ndarray:
        """Returns the text in its special tokens, (length,) int32, padded or truncated."""
        found, ids = self.tokenizer.encode(as_text(text)), special_ids(self.tokenizer)
        before, after = template(self.tokenizer)
        room = self.length - len(before) - len(after)
        found = (
            found[:room] if self.truncation_side == "right" else found[max(len(found) - room, 0) :]
        )
        return np.array([*before, *found, *after] + [ids["pad"]] * (room - len(found)), np.int32)

    def _encoded(self, example: Example) -> Example:
        found = {"tokens": self.tokens(example["text"])}
        if "label" not in example:
            return found
        label = example["label"]
        return {**found, "label": self._number(as_text(label)) if is_word(label) else label}

    def _number(self, label: str) -> np.int32:
        if label not in self.classes:
            known = ", ".join(map(repr, self.classes))
            raise UserError(f"a text has the label {label!r}, unknown in training (it had {known})")
        return np.int32(self.classes.index(label))


@dataclass(frozen=True, kw_only=True)
class Texts(Data):
    """Texts one per row, as for BERT: `tokens` (length,) and `label` if present.

    `<bos>` comes first, padding last; with the tokenizer of a pretrained model (`TokenizerFile`)
    its special tokens are around the text, such as `[CLS]` and `[SEP]`. Splits are those of `text`;
    pieces are learned from its training texts alone.
    """

    text: Data = field(kw_only=False)  # the set; its examples have `text`
    encoding: Encoding = BPE()  # how text becomes tokens
    length: int = 128  # tokens of a text, special ones included
    truncation_side: Literal["right", "left"] = "right"  # side cut off a text that is too long

    array_names: ClassVar[tuple[str, str]] = ("tokens", "label")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2:
            raise UserError(f"data.length must be at least 2, not {self.length}")

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the text, encoded on access."""
        splits = self.fitted_wrapped.splits()
        classes = self._classes(splits)
        return {name: self._encoded(source, classes) for name, source in splits.items()}

    def convert(self, source: Source) -> EncodedTexts:
        """See `Data.convert`."""
        return self._encoded(source, self._classes(self.fitted_wrapped.splits()))

    def output_names(self) -> tuple[str, ...]:
        """Output names of the text set, or the words that label its texts."""
        if self.fitted_values is not None:
            return tuple(self.fitted_values["classes"])
        return self.text.output_names() or _word_labels(self.text.splits())

    def reader(self) -> Reader:
        """Returns the reader of the text set, with the training tokenizer."""
        read, encoded = self.fitted_wrapped.reader(), self._encoded(())

        def tokens(path: Path) -> dict[str, np.ndarray]:
            return {"tokens": np.stack([encoded.tokens(text) for text in read(path)["text"]])}

        return tokens

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Fingerprint of the texts, the tokenizer and the truncation."""
        assert isinstance(source, EncodedTexts)
        found = self.text.fingerprint(source.source)
        cut = f"{found['sha256']} {self.length} {self.truncation_side} {self.tokenizer().to_json()}"
        return {**found, "sha256": hashlib.sha256(cut.encode()).hexdigest()}

    def _make_tokenizer(self) -> Tokenizer:
        return _with_specials(self.encoding, self.text, ("pad",))

    def _classes(self, splits: Mapping[str, Source]) -> tuple[str, ...]:
        """Returns the words that label the texts."""
        known = self.fitted_values
        return _word_labels(splits) if known is None else tuple(known["classes"])

    def _encoded(self, source: Source, classes: tuple[str, ...] = ()) -> EncodedTexts:
        return EncodedTexts(source, self.tokenizer(), self.length, self.truncation_side, classes)


def _word_labels(splits: Mapping[str, Source]) -> tuple[str, ...]:
    """Returns the sorted words that label texts; empty where the first label is none."""
    if not is_word(splits["train"][0].get("label")):
        return ()
    labels = {as_text(label) for source in splits.values() for _, label in read_texts(source)}
    return tuple(sorted(labels))


def is_word(label: Any) -> bool:
    """Whether a label is a word, not a number."""
    return isinstance(label, (str, bytes))


def template(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the special tokens before and after a text."""
    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizer.template
    return [special_ids(tokenizer)["bos"]], []


def _with_specials(encoding: Encoding, data: Data, needed: Sequence[str]) -> Tokenizer:
    """Returns the tokenizer, which needs special tokens of some roles.

    Raises:
      UserError: it lacks one.
    """
    tokenizer = encoding.build(text for text, _ in read_texts(data.splits()["train"]))
    known = special_ids(tokenizer)
    if not known:
        raise UserError(
            f"the texts of {data.full_name()} need <bos>, <eos> and <pad> tokens, which bytes "
            f"and characters lack: set data.encoding to bpe"
        )
    if missing := [role for role in needed if role not in known]:
        raise UserError(
            f"the texts of {data.full_name()} need a <{missing[0]}> token, which the tokenizer of "
            f"data.encoding lacks: set data.encoding to bpe, or to another tokenizer"
        )
    return tokenizer
