"""How text becomes tokens: by bytes, by characters, or by pieces learned from the training text."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jdl.errors import UserError

SPECIALS = ("<pad>", "<bos>", "<eos>", "<mask>")
"""What the first ids of `BPE` stand for: padding, begin and end of a text, a hidden token."""

PAD, BOS, EOS, MASK = range(4)


@runtime_checkable
class Tokenizer(Protocol):
    """Texts as ids and back."""

    @property
    def size(self) -> int:
        """How many ids there are."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special token is added.

        Raises:
          UserError: the text holds what has no id.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        ...

    def to_json(self) -> str:
        """Everything that `read_tokenizer` needs."""
        ...


@dataclass(frozen=True)
class Bytes:
    """The bytes of UTF-8: 256 ids, and nothing to learn. It is its own `Tokenizer`."""

    size = 256

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Itself, whatever the texts."""
        del texts
        return self

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`; what is no UTF-8 shows as the replacement character."""
        return bytes(tokens).decode(errors="replace")

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return json.dumps({"jdl": "bytes"})


@dataclass(frozen=True)
class Chars:
    """One id for each character of the text, in Unicode order."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer of the characters in these texts."""
        return Alphabet("".join(sorted(set().union(*texts))))


@dataclass(frozen=True)
class Alphabet:
    """Characters by their place."""

    characters: str

    @property
    def size(self) -> int:
        """See `Tokenizer.size`."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        ids = {character: index for index, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(ids))
        if unknown:
            raise UserError(
                f"the text holds {', '.join(map(repr, unknown[:5]))}, which the training text "
                f"has not, so that there is no token for it"
            )
        return [ids[character] for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return "".join(self.characters[token] for token in tokens)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return json.dumps({"jdl": "characters", "characters": self.characters})


@dataclass(frozen=True)
class BPE:
    """Pieces that pairs of bytes, frequent in the training text, were merged to.

    Sennrich et al. (2016), on bytes (Radford et al., 2019), by the library `tokenizers` (the extra
    `text`). Ids 0 to 3 are `SPECIALS`; every text has an encoding.
    """

    vocabulary: int = 8192  # ids, the special ones and 256 bytes included
    lowercase: bool = False  # read capitals as small letters

    def __post_init__(self) -> None:
        least = 256 + len(SPECIALS)
        if self.vocabulary < least:
            raise UserError(f"BPE.vocabulary must be at least {least}, not {self.vocabulary}")

    def build(self, texts: Iterable[str]) -> "Pieces":
        """Learns from texts.

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
            vocab_size=self.vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        pieces.train_from_iterator(texts, trainer)
        return Pieces(pieces.to_str())


@dataclass(frozen=True)
class Pieces:
    """A tokenizer of the library `tokenizers`, as JSON."""

    text: str

    def __reduce__(self) -> Any:
        # Without what is cached: a pickled tokenizer of the library forgets how it was set.
        return Pieces, (self.text,)

    @functools.cached_property
    def _pieces(self) -> Any:
        pieces = _library().Tokenizer.from_str(self.text)
        pieces.encode_special_tokens = True  # "<eos>" in a text is five characters, no command
        return pieces

    @property
    def size(self) -> int:
        """See `Tokenizer.size`."""
        return self._pieces.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._pieces.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, by all cores."""
        found = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._pieces.decode(list(map(int, tokens)), skip_special_tokens=True)

    def to_json(self) -> str:
        """See `Tokenizer.to_json`."""
        return self.text


def read_tokenizer(text: str) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`.

    Raises:
      UserError: it is no tokenizer.
    """
    try:
        known = json.loads(text)
        if "jdl" not in known:
            return Pieces(text)
        if known["jdl"] == "bytes":
            return Bytes()
        return Alphabet(str(known["characters"]))
    except UserError:
        raise
    except Exception as error:  # of the library's own kind, which is Exception itself
        raise UserError("this is no tokenizer that jdl has saved") from error


def _library() -> Any:
    """The module `tokenizers`."""
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(
            "tokenizers of pieces need the package tokenizers: pip install 'jdl-research[text]'"
        ) from error
    del decoders, models, normalizers, pre_tokenizers, trainers
    return tokenizers
