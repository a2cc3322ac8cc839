"""Conversations with the language model of a run."""

from collections.abc import Iterator

import jax
import numpy as np

from jdl.data.chats import Chats, Message
from jdl.data.tokenizers import Tokenizer
from jdl.decoding import Sampling
from jdl.decoding.sampling import PLAIN
from jdl.errors import UserError
from jdl.inference.generate import decoded
from jdl.trainer.run import Run
from jdl.trainer.sampling import end_token, stream_tokens, until


class Conversation:
    """Messages so far, and the model that answers them.

    When they do not fit the model's context any more, the oldest are forgotten, except for the
    system's.

    Args:
      run: a run trained on `Chats`.
      tokenizer: the tokenizer of its data.
      system: instructions that come before all messages; None: none.
      sampling: temperature, top-k and top-p.
      seed: of the sampling.
      max_new_tokens: largest number of tokens of an answer.

    Raises:
      UserError: the run was trained on other data, or a number is out of range.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        system: str | None = None,
        sampling: Sampling = PLAIN,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        data = run.experiment.data
        if not isinstance(data, Chats):
            raise UserError(
                f"{run.workdir} was trained on {type(data).__name__}; conversations need the data "
                f"jdl.data.Chats: use `jdl generate`"
            )
        if not 0 <= seed < 2**63:
            raise UserError(f"the seed must lie between 0 and 2^63 - 1, but is {seed}")
        model = run.experiment.model
        self._context: int = getattr(model, "max_position_embeddings", None) or data.length
        if not 1 <= max_new_tokens < self._context:
            raise UserError(
                f"max_new_tokens must be from 1 to {self._context - 1}, since the model reads "
                f"{self._context} tokens, not {max_new_tokens}"
            )
        self._run, self._tokenizer, self._template = run, tokenizer, data.template
        self._sampling, self._key, self._limit = sampling, jax.random.key(seed), max_new_tokens
        self._state = run.evaluation_state(run.state)
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []

    def reply(self, text: str) -> Iterator[str]:
        """Yields the answer to a message in pieces, and then remembers both.

        Raises:
          UserError: the message is empty, or longer than the model can read.
        """
        if not text.strip():
            raise UserError("the message is empty: write something to answer")
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt, asked = self._fitting(asked)
        key = jax.random.fold_in(self._key, len(self.messages))
        end, tokenizer = end_token(self._tokenizer), self._tokenizer
        # All of the context, so that texts of any length share one compiled function.
        room = self._context + 1 - len(prompt)
        made = stream_tokens(
            self._run, self._state, tokenizer, prompt, room, self._sampling, key, 1
        )
        answer = ""
        for pieces in decoded(tokenizer, prompt, _first(made, self._limit, end), 1, end):
            answer += pieces[0]
            yield pieces[0]
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _fitting(self, messages: list[Message]) -> tuple[list[int], list[Message]]:
        """Returns the prompt of the last messages that leave room for an answer, and these."""
        while True:
            prompt = self._template.prompt([*self.system, *messages], self._tokenizer)
            if len(prompt) + self._limit <= self._context:
                return prompt, messages
            if len(messages) == 1:
                raise UserError(
                    f"the message has {len(prompt)} tokens with its template; the model reads "
                    f"{self._context}, of which {self._limit} are for the answer: shorten it, or "
                    f"lower --max-new-tokens"
                )
            messages = messages[2:]


def _first(chunks: Iterator[np.ndarray], count: int, end: int | None) -> Iterator[np.ndarray]:
    """Yields the first `count` tokens of a row, in chunks; stops at the end of the text."""
    left = count
    for chunk in chunks:
        yield chunk[:, :left]
        left -= chunk.shape[1]
        if left <= 0 or len(until(chunk[0].tolist(), end)) < chunk.shape[1]:
            return
