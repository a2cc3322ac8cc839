"""What language models of runs write."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jdl.data.text import as_text
from jdl.data.tokenizers import EOS, BPETokenizer, Tokenizer
from jdl.data.vocabulary import check_vocab_size
from jdl.decoding import Sampling, stream
from jdl.decoding.sampling import PLAIN
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.inference.predict import open_to_predict
from jdl.tasks import LanguageModeling
from jdl.tracing import takes_argument
from jdl.trainer.run import Run

UNFINISHED = "\ufffd"
"""What a character shows as of which some bytes are yet to come."""


def open_to_write(workdir: Path, experiment: Experiment) -> tuple[Run, Tokenizer]:
    """The run that a directory holds, with its last or best weights, and its data's tokenizer.

    Raises:
      UserError: it is no language model's, its data has no tokenizer or another one than the model
        was made for, or the directory holds no checkpoint of this experiment.
    """
    task = experiment.task
    if not isinstance(task, LanguageModeling):
        raise UserError(
            f"{workdir} is a run of the task {type(task).__name__}; texts are written by models of "
            f"the task LanguageModeling"
        )
    run = open_to_predict(workdir, experiment)
    check_vocab_size(run.experiment.data, run.prediction.shape[-1])
    return run, run.experiment.data.tokenizer()


def write(
    run: Run,
    tokenizer: Tokenizer,
    prompt: str | None,
    tokens: int,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    samples: int = 1,
) -> Iterator[list[str]]:
    """Goes on with a text, piece by piece.

    Args:
      run: of a language model.
      tokenizer: of its data.
      prompt: what is gone on with; None: what follows a line break, or where the tokenizer knows
        none, its first token.
      tokens: how many are drawn for each sample; fewer where a text ends.
      sampling: how they are drawn.
      seed: what they are drawn with.
      samples: how many texts.

    Yields:
      The new characters of each sample, of the prompt none.

    Raises:
      UserError: the prompt is empty, too long, or holds what the tokenizer does not know; or a
        number is out of range.
    """
    if samples < 1:
        raise UserError(f"the number of samples must be at least 1, not {samples}")
    if not 0 <= seed < 2**63:
        raise UserError(f"the seed must lie between 0 and 2^63 - 1, but is {seed}")
    known = _known(tokenizer, prompt)
    end = EOS if isinstance(tokenizer, BPETokenizer) else None
    state, model = run.compiled.gather(run.evaluation_state(run.state)), run.program.model
    context = getattr(model, "max_position_embeddings", None)
    if context is None and not takes_argument(model, "decode"):
        # What it can read is not known beyond what it was trained on.
        context = run.batch[run.experiment.task.inputs].shape[1] - 1
    chunks = stream(
        model, state.params, known, tokens, sampling, jax.random.key(seed), samples=samples,
        eos_token_id=end, vocab_size=tokenizer.vocab_size, context_length=context,
        collections=state.collections,
    )  # fmt: skip
    return _decoded(tokenizer, known, chunks, samples, end)


def _known(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    if prompt == "":
        raise UserError("the prompt is empty: leave it out to begin anew, or write something")
    if prompt is not None:
        return tokenizer.encode(as_text(prompt))
    try:
        return tokenizer.encode("\n")
    except UserError:
        return [0]


def _decoded(
    tokenizer: Tokenizer,
    known: list[int],
    chunks: Iterator[np.ndarray],
    samples: int,
    end: int | None,
) -> Iterator[list[str]]:
    """What each chunk adds to the texts; a character is held back until all of it is there."""
    made: list[list[int]] = [[] for _ in range(samples)]
    before = len(tokenizer.decode(known))
    said = [before] * samples
    for chunk in chunks:
        pieces = []
        for index, row in enumerate(chunk):
            if end not in made[index]:
                made[index] += _until(row.tolist(), end)
            text = tokenizer.decode(known + made[index]).rstrip(UNFINISHED)
            pieces.append(text[said[index] :])
            said[index] = max(said[index], len(text))
        yield pieces
    texts = [tokenizer.decode(known + row) for row in made]
    yield [text[length:] for text, length in zip(texts, said, strict=True)]


def _until(tokens: list[int], end: int | None) -> list[int]:
    """The tokens up to the first end, which is one of them."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
