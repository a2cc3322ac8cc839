"""Tokenizers: bytes, characters, words, BPE trained on the training text, or other models'."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from jdl.errors import UserError, first_line, install_command
from jdl.files import RunDirectory

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")
"""What the first ids of `BPE` stand for: padding, begin and end of a text, a hidden token."""

PAD, BOS, EOS, MASK = range(4)

ROLES: Mapping[str, tuple[str, ...]] = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<bos>", "[CLS]", "<s>", "<|endoftext|>"),
    "eos": ("<eos>", "[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}
"""Special tokens by role, as the tokenizers of jdl, BERT, RoBERTa and GPT-2 spell them."""


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
class WordLevel(Encoding):
    """One id per word, as blanks divide a text, in Unicode order; for few words, such as digits."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Returns the tokenizer of the words in these texts."""
        return WordTokenizer(tuple(sorted({word for text in texts for word in text.split()})))


@dataclass(frozen=True)
class WordTokenizer:
    """Tokenizer whose ids are indices into `words`."""

    words: tuple[str, ...]

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return len(self.words)

    def token_bytes(self) -> np.ndarray:
        """See `Tokenizer.token_bytes`; without the blanks between words."""
        return np.array([len(word.encode()) for word in self.words], np.int32)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        words, ids = text.split(), self._ids
        if unknown := sorted({*words} - ids.keys()):
            shown = ", ".join(map(repr, unknown[:5]))
            raise UserError(
                f"the text contains {shown}, which the training text of the tokenizer did not: "
                f"remove such words, or set data.encoding to chars"
            )
        return [ids[word] for word in words]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """See `Tokenizer.decode`."""
        return " ".join(self.words[token] for token in tokens)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return json.dumps({"jdl": "words", "words": self.words})


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

    def build(self, texts: Iterable[str]) -> "SubwordTokenizer":
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
        return SubwordTokenizer(pieces.to_str())


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer of the library `tokenizers`, stored as JSON: byte-level BPE or WordPiece."""

    text: str

    def __reduce__(self) -> Any:
        # Without cached values: a pickled library tokenizer loses its settings.
        return SubwordTokenizer, (self.text,)

    @functools.cached_property
    def _pieces(self) -> Any:
        pieces = _library().Tokenizer.from_str(self.text)
        pieces.encode_special_tokens = True  # "<eos>" in a text is five characters, not special
        pieces.no_truncation()
        pieces.no_padding()
        return pieces

    @functools.cached_property
    def _known(self) -> Mapping[str, Any]:
        return json.loads(self.text)

    @property
    def _is_wordpiece(self) -> bool:
        return self._known["model"].get("type") == "WordPiece"

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return self._pieces.get_vocab_size()

    @functools.cached_property
    def special_ids(self) -> Mapping[str, int]:
        """Ids of the special tokens by role, of those in `ROLES` that there are."""
        ids = {each["content"]: each["id"] for each in self._known["added_tokens"]}
        found = {role: [ids[n] for n in names if n in ids] for role, names in ROLES.items()}
        return {role: ids[0] for role, ids in found.items() if ids}

    @functools.cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a text, such as those of `[CLS] text [SEP]`."""
        if self._known.get("post_processor") is None:
            return [self.special_ids["bos"]] if "bos" in self.special_ids else [], []
        found = self._pieces.encode("a", add_special_tokens=True)
        ids, marks = found.ids, found.special_tokens_mask
        first, last = marks.index(0), len(marks) - marks[::-1].index(0)
        return ids[:first], ids[last:]

    def token_bytes(self) -> np.ndarray:
        """See `Tokenizer.token_bytes`; of the text as it is normalized, such as lowercased."""
        found = np.zeros(self.vocab_size, np.int32)
        special = {each["id"] for each in self._known["added_tokens"] if each["special"]}
        for piece, token in self._pieces.get_vocab().items():
            # A letter of byte-level BPE stands for a byte.
            size = len(piece.removeprefix("##").encode()) if self._is_wordpiece else len(piece)
            found[token] = 0 if token in special else size
        return found

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._pieces.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of several texts, using all cores."""
        found = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """See `Tokenizer.decode`; WordPiece has lost spaces, and what its normalizer changes."""
        return self._pieces.decode(list(map(int, tokens)), skip_special_tokens=True)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return self.text


def special_ids(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Returns the ids of a tokenizer's special tokens by role: `pad`, `bos`, `eos` and `mask`."""
    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizer.special_ids
    first = tokenizer.token_bytes()[: len(SPECIAL_TOKENS)]
    return {} if first.any() else dict(zip(ROLES, range(len(first)), strict=False))


@dataclass(frozen=True)
class TokenizerFile(Encoding):
    """The tokenizer of a pretrained model, from its `tokenizer.json`.

    Byte-level BPE, as of GPT-2, or WordPiece, as of BERT. Lengths to which the file truncates and
    pads are ignored: the data set has its own.
    """

    path: str  # the file, or the directory that holds it

    def build(self, texts: Iterable[str]) -> SubwordTokenizer:
        """Reads the tokenizer.

        Raises:
          UserError: there is no such file, or it is of another kind.
        """
        del texts
        path = Path(self.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(
                f"{path} cannot be read ({reason}): name the tokenizer.json of a pretrained model, "
                f"or its directory"
            ) from error
        found = read_tokenizer(text, str(path))
        if not isinstance(found, SubwordTokenizer):
            raise UserError(f"{path} is a tokenizer of jdl: name its run with the encoding Saved")
        known = json.loads(text)
        kind = known["model"].get("type", "BPE")
        levels = json.dumps([known.get("pre_tokenizer"), known.get("decoder")])
        if kind != "WordPiece" and not (kind == "BPE" and "ByteLevel" in levels):
            raise UserError(
                f"{path} is a tokenizer of the kind {kind}; supported: WordPiece and byte-level BPE"
            )
        return found


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


def read_tokenizer(text: str, where: str = "this") -> Tokenizer:
    """Parses a tokenizer; inverse of `Tokenizer.to_json`.

    Args:
      text: JSON.
      where: what it is called in the error.

    Raises:
      UserError: it is not a tokenizer.
    """
    try:
        known = json.loads(text)
        if "jdl" not in known:
            # As `tokenizers` lays it out, in a run's record too: fingerprints hold this text.
            pieces = SubwordTokenizer(json.dumps(known, ensure_ascii=False, separators=(",", ":")))
            assert pieces.vocab_size
            return pieces
        if known == {"jdl": "bytes"}:
            return Bytes()
        if known["jdl"] == "words":
            assert all(isinstance(word, str) for word in known["words"])
            return WordTokenizer(tuple(known["words"]))
        characters = known["characters"]
        assert known["jdl"] == "characters"
        assert isinstance(characters, str)
        assert len(set(characters)) == len(characters)
        return CharTokenizer(characters)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{where} is not a tokenizer saved by jdl or transformers") from error


def _library() -> Any:
    """Imports `tokenizers`."""
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(f"BPE needs the package tokenizers: {install_command('text')}") from error
    del decoders, models, normalizers, pre_tokenizers, trainers
    return tokenizers
