"""Generates text with the language model of a run."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jdl.data.text import as_text
from jdl.data.tokenizers import Tokenizer
from jdl.data.vocabulary import check_vocab_size
from jdl.decoding import Sampling
from jdl.decoding.sampling import PLAIN
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.tasks import LanguageModeling
from jdl.trainer.opening import restore_run
from jdl.trainer.run import Run
from jdl.trainer.sampling import end_token, first_tokens, stream_tokens, until

UNFINISHED = "\ufffd"
"""The replacement character, which decodes a character whose last bytes are not generated yet."""


def open_for_generation(workdir: Path, experiment: Experiment) -> tuple[Run, Tokenizer]:
    """Opens a run with its last or best weights; returns it and its data's tokenizer.

    Raises:
      UserError: its task is not language modeling, its tokenizer is missing or larger than the
        model's vocabulary, or the directory contains no checkpoint of this experiment.
    """
    task = experiment.task
    if not isinstance(task, LanguageModeling):
        raise UserError(
            f"{workdir} is a run of the task {type(task).__name__}; texts are written by models of "
            f"the task LanguageModeling"
        )
    run = restore_run(workdir, experiment)
    check_vocab_size(run.experiment.data, run.prediction.shape[-1])
    return run, run.experiment.data.tokenizer()


def generate(
    run: Run,
    tokenizer: Tokenizer,
    prompt: str | None,
    tokens: int,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    samples: int = 1,
) -> Iterator[list[str]]:
    """Continues a text, chunk by chunk.

    Args:
      run: a run of a language model.
      tokenizer: the tokenizer of its data.
      prompt: the text to continue; None for a line break or, if the tokenizer has none, for its
        first token.
      tokens: number of tokens to generate per sample; fewer where a text ends.
      sampling: temperature, top-k and top-p.
      seed: of the sampling.
      samples: number of texts.

    Yields:
      The new characters of each sample, without the prompt.

    Raises:
      UserError: the prompt is empty, too long or contains unknown characters, or a number is out of
        range.
    """
    if samples < 1:
        raise UserError(f"the number of samples must be at least 1, not {samples}")
    if not 0 <= seed < 2**63:
        raise UserError(f"the seed must lie between 0 and 2^63 - 1, but is {seed}")
    if prompt == "":
        raise UserError("the prompt is empty: omit it, or write a text to continue")
    known = first_tokens(tokenizer) if prompt is None else tokenizer.encode(as_text(prompt))
    state, key = run.evaluation_state(run.state), jax.random.key(seed)
    chunks = stream_tokens(run, state, tokenizer, known, tokens, sampling, key, samples)
    return decoded(tokenizer, known, chunks, samples, end_token(tokenizer))


def decoded(
    tokenizer: Tokenizer,
    known: list[int],
    chunks: Iterator[np.ndarray],
    samples: int,
    end: int | None,
) -> Iterator[list[str]]:
    """Yields the characters of each chunk; an incomplete one waits for its last bytes."""
    made: list[list[int]] = [[] for _ in range(samples)]
    before = len(tokenizer.decode(known))
    yielded = [before] * samples
    for chunk in chunks:
        pieces = []
        for index, row in enumerate(chunk):
            if end not in made[index]:
                made[index] += until(row.tolist(), end)
            text = tokenizer.decode(known + made[index]).rstrip(UNFINISHED)
            pieces.append(text[yielded[index] :])
            yielded[index] = max(yielded[index], len(text))
        yield pieces
    texts = [tokenizer.decode(known + row) for row in made]
    yield [text[length:] for text, length in zip(texts, yielded, strict=True)]
