"""Tokenized sentence pairs for translation."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.files import read_columns
from jdl.data.readers import Reader
from jdl.data.sources import Source, read_examples
from jdl.data.text import as_text
from jdl.data.tokenizers import (
    BOS,
    BPE,
    EOS,
    PAD,
    ROLES,
    Encoding,
    SubwordTokenizer,
    Tokenizer,
    special_ids,
)
from jdl.errors import UserError, nearest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairTable(Data):
    """A CSV or TSV file of texts; an example maps column names to a row's fields."""

    path: str = field(kw_only=False)  # of the file, whose first row names its columns

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`.

        Raises:
          UserError: the file cannot be read.
        """
        columns = read_columns(self.path)
        texts = {name: np.array(column, object) for name, column in columns.items()}
        return {"train": ArraySource(texts)}

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Pairs(Data):
    """Pairs of texts as token ids, for translation: `source` and `target`.

    `source` (max_source_length,) int32 ends with `<eos>`; `target` (max_target_length + 1,) int32
    begins with `<bos>` and ends with `<eos>`; both are padded with 0 at the end. One BPE is learned
    from both sides of the training split together. Longer training texts are truncated, and a
    warning counts them. Other splits are never truncated: their arrays may be longer.
    """

    text: Data = field(kw_only=False)  # the data set of texts
    source_lang: str = "en"  # feature or column to translate from
    target_lang: str = "de"  # feature or column of the translation
    encoding: Encoding = BPE(vocab_size=8192)  # shared by both languages
    max_source_length: int = 48  # tokens of a training source, `<eos>` included
    max_target_length: int = 48  # tokens of a training target, `<eos>` included

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise UserError(f"data.{name} must be at least 2, not {getattr(self, name)}")
        if isinstance(self.encoding, BPE) and self.encoding.lowercase:
            raise UserError(
                "data.encoding.lowercase must stay false: translations have capitals, and are "
                "scored with them"
            )

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the text, encoded once.

        Raises:
          UserError: an example lacks one of the texts, or it is empty.
        """
        return dict(self._arrays_of_splits)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (texts, at least `max_source_length`) int32, padded and never truncated."""
        return _padded(self._pieces().encode_batch(texts), self.max_source_length)

    def reader(self) -> Reader:
        """Raises a UserError: files are translated by `jdl translate`."""
        raise UserError(
            f"{self.full_name()} has pairs of texts, which `jdl predict` does not support: use "
            f"`jdl translate`"
        )

    @functools.cached_property
    def _texts(self) -> dict[str, tuple[list[str], list[str]]]:
        """Returns the sources and the targets of each split."""
        return {name: self._read(name, source) for name, source in self.text.splits().items()}

    @functools.cached_property
    def _arrays_of_splits(self) -> dict[str, Source]:
        pieces = self._pieces()
        return {name: self._arrays(name, both, pieces) for name, both in self._texts.items()}

    def _make_tokenizer(self) -> Tokenizer:
        return self.encoding.build(text for side in self._texts["train"] for text in side)

    def _pieces(self) -> SubwordTokenizer:
        """Returns the tokenizer, which needs `<bos>`, `<eos>` and `<pad>` tokens."""
        pieces = self.tokenizer()
        own = dict(zip(ROLES, range(len(ROLES)), strict=True))
        if not isinstance(pieces, SubwordTokenizer) or special_ids(pieces) != own:
            raise UserError(
                f"the texts of {self.full_name()} need <bos>, <eos> and <pad> tokens with the ids "
                f"of jdl's own, which bytes and characters and other models' tokenizers lack: set "
                f"data.encoding to bpe"
            )
        return pieces

    def _read(self, split: str, source: Source) -> tuple[list[str], list[str]]:
        """Returns the sources and the targets of a split."""
        examples = read_examples(source, range(len(source)))
        for name in (self.source_lang, self.target_lang):
            known = [key for key, value in examples[0].items() if isinstance(value, (str, bytes))]
            if name not in known:
                raise UserError(
                    f"{self.full_name()} has no text {name!r} (it has "
                    f"{', '.join(map(repr, known)) or 'none'}): name both with data.source_lang "
                    f"and data.target_lang{nearest(name, known)}"
                )
        sides = [
            [as_text(e[name]) for e in examples] for name in (self.source_lang, self.target_lang)
        ]
        for name, side in zip((self.source_lang, self.target_lang), sides, strict=True):
            empty = [row for row, text in enumerate(side, start=1) if not text.strip()]
            if empty:
                raise UserError(
                    f"{self.full_name()}: the text {name!r} of example {empty[0]} in split "
                    f"{split!r} is empty"
                )
        return sides[0], sides[1]

    def _arrays(
        self, split: str, texts: tuple[list[str], list[str]], pieces: SubwordTokenizer
    ) -> Source:
        sources, targets = map(pieces.encode_batch, texts)
        cut = split == "train"
        if cut:
            self._count_cut(sources, targets)
        return ArraySource(
            {
                "source": _padded(sources, self.max_source_length, (), cut),
                "target": _padded(targets, self.max_target_length + 1, (BOS,), cut),
            }
        )

    def _count_cut(self, sources: list[list[int]], targets: list[list[int]]) -> None:
        cut = sum(
            len(s) >= self.max_source_length or len(t) >= self.max_target_length
            for s, t in zip(sources, targets, strict=True)
        )
        if cut:
            _log.warning(
                "%d of %d training pairs of %s are longer than %d and %d tokens and lose their end",
                cut, len(sources), self.full_name(), self.max_source_length, self.max_target_length,
            )  # fmt: skip


def _padded(
    texts: list[list[int]], length: int, begin: tuple[int, ...] = (), cut: bool = False
) -> np.ndarray:
    """Returns ids between `begin` and `<eos>`, padded at the end to `length`.

    What is longer makes all longer, or is cut.
    """
    rows = [[*begin, *ids, EOS] for ids in texts]
    length = length if cut else max(length, *map(len, rows))
    padded = np.full((len(rows), length), PAD, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids[:length]
    return padded
