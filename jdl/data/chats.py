"""Conversations as tokens, of which a chat model learns the answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.language import no_reader
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source
from jdl.data.text import as_text
from jdl.data.tokenizers import BPE, Encoding, Tokenizer, special_ids
from jdl.errors import UserError, first_line
from jdl.typing import Json

Message = Mapping[str, str]
"""`role`, such as user or assistant, and `content`."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a conversation becomes one text.

    `<bos>` comes first, and each message is its role's prefix, its content and `<eos>`.
    """

    user: str = "User: "  # prefix of what the user writes
    assistant: str = "Assistant: "  # prefix of an answer
    system: str = "System: "  # prefix of instructions, which come first

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[bool]]:
        """Returns the tokens of a conversation, and which of them an assistant wrote.

        The `<eos>` of an answer is part of it; the prefix is not.

        Raises:
          UserError: a message has another role.
        """
        ids = special_ids(tokenizer)
        tokens, mask = [ids["bos"]], [False]
        for message in messages:
            answers = message["role"] == "assistant"
            prefix = tokenizer.encode(self.prefix(message["role"]))
            content = [*tokenizer.encode(message["content"]), ids["eos"]]
            tokens += [*prefix, *content]
            mask += [False] * len(prefix) + [answers] * len(content)
        return tokens, mask

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens that an answer to the messages continues."""
        return [*self.encode(messages, tokenizer)[0], *tokenizer.encode(self.assistant)]

    def prefix(self, role: str) -> str:
        """Returns the prefix of a role.

        Raises:
          UserError: there is no such role.
        """
        known = {"user": self.user, "assistant": self.assistant, "system": self.system}
        if role not in known:
            raise UserError(f"a message has the role {role!r}; roles are {', '.join(known)}")
        return known[role]


@dataclass(frozen=True, kw_only=True)
class ChatFile(Data):
    """Conversations in a file of JSON lines, each with `messages` of `role` and `content`.

    That is the format of OpenAI and of Hugging Face's TRL. Some lines are held out as test and
    validation.
    """

    path: str = field(kw_only=False)  # UTF-8 file

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`.

        Raises:
          UserError: the file cannot be read, or a line is no conversation.
        """
        path = Path(self.path).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{path} cannot be read: {reason}") from error
        found = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    found.append(parse_messages(json.loads(line), where))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where} is not valid JSON: {first_line(error)}") from error
        if not found:
            raise UserError(f"{path} is empty: each line is a conversation")
        return {"train": conversations(found)}

    def full_name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def needs(self) -> str:
        """The file."""
        return str(self.path)


def conversations(found: Sequence[Sequence[Message]]) -> ArraySource:
    """Returns conversations as examples with `messages`, JSON."""
    return ArraySource({"messages": np.array([json.dumps(list(each)) for each in found], object)})


def parse_messages(given: Any, where: str) -> list[dict[str, str]]:
    """Returns the messages of a conversation.

    Args:
      given: a list of messages, an object with `messages`, or JSON of these.
      where: its origin, for the message.

    Raises:
      UserError: it is not a conversation.
    """
    if isinstance(given, (str, bytes)):
        try:
            given = json.loads(as_text(given))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not valid JSON: {first_line(error)}") from error
    messages = given.get("messages") if isinstance(given, Mapping) else given
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f'{where} is no conversation: write {{"messages": [{{"role": "user", "content": '
            f'"..."}}, ...]}}'
        )
    for number, message in enumerate(messages, start=1):
        keys = ("role", "content")
        fits = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in keys)
        if not fits:
            raise UserError(f"{where}: message {number} needs a role and a content, both texts")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


@dataclass(frozen=True)
class EncodedChats:
    """Conversations as a fixed number of tokens, encoded on access."""

    source: Source
    tokenizer: Tokenizer
    template: ChatTemplate
    length: int
    where: str  # of the conversations, for errors

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """`tokens` (length + 1,) int32, padded with -1, and `loss_mask` (length + 1,) bool."""
        where = f"{self.where}: conversation {index + 1}"
        messages = parse_messages(self.source[index]["messages"], where)
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError(f"{where} has no message of the assistant, whose answers are learned")
        try:
            found, answers = self.template.encode(messages, self.tokenizer)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        tokens, mask = np.full(self.length + 1, -1, np.int32), np.zeros(self.length + 1, bool)
        count = min(len(found), self.length + 1)
        tokens[:count], mask[:count] = found[:count], answers[:count]
        return {"tokens": tokens, "loss_mask": mask}


@dataclass(frozen=True, kw_only=True)
class Chats(Data):
    """Conversations one per row, for a chat model: `tokens` and `loss_mask` (length + 1,).

    `LanguageModeling` learns the tokens where `loss_mask` is True: the answers. What does not fit
    loses its end. Splits are those of `chats`; pieces are learned from its training texts alone.
    """

    chats: Data = field(kw_only=False)  # the set; its examples have `messages` (see `ChatFile`)
    encoding: Encoding = BPE()  # how text becomes tokens
    length: int = 128  # input tokens of a conversation
    template: ChatTemplate = ChatTemplate()  # how its messages become one text

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2:
            raise UserError(f"data.length must be at least 2, not {self.length}")

    def splits(self) -> dict[str, Source]:
        """Returns the splits of the set, encoded on access."""
        return {name: self.convert(source) for name, source in self.chats.splits().items()}

    def convert(self, source: Source) -> EncodedChats:
        """See `Data.convert`."""
        name = self.full_name()
        return EncodedChats(source, self.tokenizer(), self.template, self.length, name)

    def fit(self) -> dict[str, Json]:
        """Returns nothing: `jdl chat` needs the tokenizer only."""
        return {}

    def reader(self) -> Reader:
        """Raises a UserError: there is no one prediction for a file."""
        return no_reader(self)

    def _make_tokenizer(self) -> Tokenizer:
        tokenizer = self.encoding.build(self._texts())
        if not {"bos", "eos"} <= special_ids(tokenizer).keys():
            raise UserError(
                f"the conversations of {self.full_name()} need <bos> and <eos> tokens, which the "
                f"tokenizer of data.encoding lacks: set data.encoding to bpe"
            )
        return tokenizer

    def _texts(self) -> Iterator[str]:
        source = self.chats.splits()["train"]
        for index in range(len(source)):
            example = source[index]
            if "messages" not in example:
                known = ", ".join(map(repr, example))
                raise UserError(
                    f"the examples have no 'messages' to read (they have {known}): set data.chats "
                    f"to a set of conversations, such as ChatFile"
                )
            where = f"{self.full_name()}: conversation {index + 1}"
            for message in parse_messages(example["messages"], where):
                yield self.template.prefix(message["role"]) + message["content"]
