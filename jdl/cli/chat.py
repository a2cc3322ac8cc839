"""`jdl chat`."""

import sys
from collections.abc import Iterator

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.errors import UserError

PROMPT = "> "


def chat(
    directory: RunDirectory,
    /,
    message: tuple[str, ...] = (),
    system: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    experiment: OwnFile = None,
) -> None:
    """Talk with the chat model of a run; answers are printed token by token.

    Each line of the standard input is a message; an empty line or the end of the input (Ctrl-D)
    ends the conversation. The model sees the messages before, as many as it can read.

    Args:
        message: messages to answer one after the other, instead of the standard input.
        system: instructions that come before all messages.
        max_new_tokens: largest number of tokens of an answer.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample among this many most likely tokens.
        top_p: sample among the most likely tokens that together have this probability.
        seed: of the sampling.
    """
    from jdl.decoding import Sampling
    from jdl.inference.chat import Conversation
    from jdl.inference.generate import open_for_generation
    from jdl.trainer.record import read_run

    sampling = Sampling(temperature, top_k, top_p)
    recorded = read_run(directory, experiment)
    run, tokenizer = open_for_generation(directory, recorded.experiment)
    warn_if_unfinished(directory, run)
    talk = Conversation(run, tokenizer, system, sampling, seed, max_new_tokens)
    for text in _shown(message) if message else _typed():
        try:
            for piece in talk.reply(text):
                print(piece, end="", flush=True)
        except UserError as error:
            if message:
                raise
            print(f"jdl: {error}", end="", file=sys.stderr)
        print(flush=True)


def _shown(messages: tuple[str, ...]) -> Iterator[str]:
    for text in messages:
        print(f"{PROMPT}{text}")
        yield text


def _typed() -> Iterator[str]:
    """Yields the lines that a user types, up to an empty one."""
    while True:
        try:
            text = input(PROMPT)
        except EOFError:
            print()
            return
        if not text.strip():
            return
        yield text
