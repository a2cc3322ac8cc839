"""Tokenizers: bytes, characters, or BPE trained on the training text."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from jdl.errors import UserError, first_line, install_command
from jdl.files import RunDirectory

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")
"""What the first ids of `BPE` stand for: padding, begin and end of a text, a hidden token."""

PAD, BOS, EOS, MASK = range(4)


@runtime_checkable
class Tokenizer(Protocol):
    """Converts texts to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id, (vocab_size,) int32; 0 for special tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens.

        Raises:
          UserError: a character has no id.
        """
        ...

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Returns the text of ids, without special tokens."""
        ...

    def to_json(self) -> str:
        """Serializes it for `read_tokenizer`."""
        ...


@dataclass(frozen=True)
class Encoding:
    """Builds a tokenizer from texts."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Returns the tokenizer for these training texts."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bytes(Encoding):
    """UTF-8 bytes: 256 ids, without training. It is its own `Tokenizer`."""

    vocab_size = 256

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Returns itself."""
        del texts
        return self

    def token_bytes(self) -> np.ndarray:
        """See `Tokenizer.token_bytes`."""
        return np.ones(256, np.int32)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(text.encode())

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """See `Tokenizer.decode`; invalid UTF-8 becomes the replacement character."""
        return bytes(map(int, tokens)).decode(errors="replace")

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return json.dumps({"jdl": "bytes"})


@dataclass(frozen=True)
class Chars(Encoding):
    """One id per character of the text, in Unicode order."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Returns the tokenizer of the characters in these texts."""
        return CharTokenizer("".join(sorted(set().union(*texts))))


@dataclass(frozen=True)
class CharTokenizer:
    """Tokenizer whose ids are indices into `characters`."""

    characters: str

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return len(self.characters)

    def token_bytes(self) -> np.ndarray:
        """See `Tokenizer.token_bytes`."""
        return np.array([len(character.encode()) for character in self.characters], np.int32)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        ids = self._ids
        if unknown := sorted(set(text) - ids.keys()):
            shown = ", ".join(map(repr, unknown[:5]))
            raise UserError(
                f"the text contains {shown}, which the training text of the tokenizer did not: "
                f"remove such characters, or set data.encoding to bytes or bpe"
            )
        return [ids[character] for character in text]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """See `Tokenizer.decode`."""
        return "".join(self.characters[token] for token in tokens)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return json.dumps({"jdl": "characters", "characters": self.characters})


@dataclass(frozen=True)
class BPE(Encoding):
    """Byte-level BPE trained on the training text.

    Sennrich et al. (2016), on bytes (Radford et al., 2019), by the library `tokenizers` (the extra
    `text`). Ids 0 to 3 are `SPECIAL_TOKENS`; every text can be encoded.
    """

    vocab_size: int = 8192  # including special tokens and 256 bytes
    lowercase: bool = False  # lowercase the text

    def __post_init__(self) -> None:
        least = 256 + len(SPECIAL_TOKENS)
        if self.vocab_size < least:
            raise UserError(f"BPE.vocab_size must be at least {least}, not {self.vocab_size}")

    def build(self, texts: Iterable[str]) -> "BPETokenizer":
        """Trains on texts.

        Raises:
          UserError: `tokenizers` is not installed.
        """
        library = _library()
        pieces = library.Tokenizer(library.models.BPE())
        if self.lowercase:
            pieces.normalizer = library.normalizers.Lowercase()
        pieces.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        pieces.train_from_iterator(texts, trainer)
        return BPETokenizer(pieces.to_str())


@dataclass(frozen=True)
class BPETokenizer:
    """A tokenizer of the library `tokenizers`, stored as JSON."""

    text: str

    def __reduce__(self) -> Any:
        # Without cached values: a pickled library tokenizer loses its settings.
        return BPETokenizer, (self.text,)

    @functools.cached_property
    def _pieces(self) -> Any:
        pieces = _library().Tokenizer.from_str(self.text)
        pieces.encode_special_tokens = True  # "<eos>" in a text is five characters, not special
        return pieces

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return self._pieces.get_vocab_size()

    def token_bytes(self) -> np.ndarray:
        """See `Tokenizer.token_bytes`; with `lowercase`, of the lowercased text."""
        found = np.zeros(self.vocab_size, np.int32)
        for piece, token in self._pieces.get_vocab().items():
            found[token] = 0 if piece in SPECIAL_TOKENS else len(piece)  # one letter per byte
        return found

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._pieces.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of several texts, using all cores."""
        found = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """See `Tokenizer.decode`."""
        return self._pieces.decode(list(map(int, tokens)), skip_special_tokens=True)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return self.text


@dataclass(frozen=True)
class Saved(Encoding):
    """The tokenizer of another run."""

    run: str  # directory of the other run

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Reads the tokenizer.

        Raises:
          UserError: the run has none, or it cannot be read.
        """
        del texts
        path = RunDirectory(Path(self.run).expanduser()).tokenizer
        try:
            return read_tokenizer(path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{self.run} has no {path.name}: name a run with a tokenizer, or train one there "
                f"first with `jdl train EXPERIMENT --workdir {self.run}`"
            ) from error
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def read_tokenizer(text: str) -> Tokenizer:
    """Parses a tokenizer; inverse of `Tokenizer.to_json`.

    Raises:
      UserError: it is not a tokenizer.
    """
    try:
        known = json.loads(text)
        if "jdl" not in known:
            pieces = BPETokenizer(text)
            assert pieces.vocab_size
            return pieces
        if known == {"jdl": "bytes"}:
            return Bytes()
        characters = known["characters"]
        assert known["jdl"] == "characters"
        assert isinstance(characters, str)
        assert len(set(characters)) == len(characters)
        return CharTokenizer(characters)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise UserError("this is not a tokenizer saved by jdl") from error


def _library() -> Any:
    """Imports `tokenizers`."""
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(f"BPE needs the package tokenizers: {install_command('text')}") from error
    del decoders, models, normalizers, pre_tokenizers, trainers
    return tokenizers
