"""Samples of a run: what its model makes, as images, texts or sounds."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jdl.data.tokenizers import EOS, BPETokenizer, Tokenizer
from jdl.decoding import Sampling, stream
from jdl.decoding.sampling import PLAIN
from jdl.errors import UserError
from jdl.media import Media, Texts
from jdl.tasks import LanguageModeling
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.tracing import takes_argument
from jdl.typing import Key

TOKENS = 200
"""Length of the texts that a language model samples."""


def sample(run: Any, count: int, key: Key | None, split: str | None, state: Any) -> Media:
    """Samples a run's model.

    Args:
      run, count, key, split: see `Run.sample`.
      state: on the devices, as it is evaluated.
    """
    if count < 1:
        raise UserError(f"the number of samples must be at least 1, not {count}")
    task, data, size = run.experiment.task, run.experiment.data, run.experiment.batch_size
    if isinstance(task, LanguageModeling):
        return _texts(run, count, key, state)
    pipeline = None if task.unconditional else run.pipeline(split or _default_split(run))
    parts = []
    for step in range(-(-count // size)):
        rows = run.shard.positions(step, size)
        # The examples begin again after the last, with other keys.
        batch = {} if pipeline is None else pipeline.examples(rows % len(pipeline))
        batch["mask"] = rows < count
        placed = run.compiled.put({**batch, ROW_SEEDS: row_seeds(key, rows)})
        parts.append((jax.device_get(run.compiled.sample(state, placed)), batch))
    samples, batch = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    return task.render(samples, batch, data)


def first_tokens(tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that a text without a prompt continues: a line break, or the first."""
    try:
        return tokenizer.encode("\n")
    except UserError:
        return [0]


def end_token(tokenizer: Tokenizer) -> int | None:
    """Returns the token that ends a text, or None."""
    return EOS if isinstance(tokenizer, BPETokenizer) else None


def until(tokens: list[int], end: int | None) -> list[int]:
    """Returns the tokens up to and including the first end token."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def stream_tokens(
    run: Any,
    state: Any,
    tokenizer: Tokenizer,
    prompt: list[int],
    tokens: int,
    sampling: Sampling,
    key: Key,
    samples: int,
) -> Iterator[np.ndarray]:
    """Continues a prompt with the language model of a run; see `jdl.decoding.stream`.

    Args:
      state: on the devices, as it is evaluated.
    """
    state, model = run.compiled.gather(state), run.program.model
    context = getattr(model, "max_position_embeddings", None)
    if context is None and not takes_argument(model, "decode"):
        # Without a field that limits it, the model is only known to work on its training length.
        context = run.batch[run.experiment.task.input_names[0]].shape[1] - 1
    return stream(
        model, state.params, prompt, tokens, sampling, key, samples=samples,
        eos_token_id=end_token(tokenizer), vocab_size=tokenizer.vocab_size, context_length=context,
        collections=state.collections,
    )  # fmt: skip


def _texts(run: Any, count: int, key: Key | None, state: Any) -> Texts:
    tokenizer = run.experiment.data.tokenizer()
    known, end = first_tokens(tokenizer), end_token(tokenizer)
    key = jax.random.key(0) if key is None else key
    chunks = stream_tokens(run, state, tokenizer, known, TOKENS, PLAIN, key, count)
    rows = np.concatenate(list(chunks), axis=1).tolist()
    begin = len(tokenizer.decode(known))
    return Texts([tokenizer.decode(known + until(row, end))[begin:] for row in rows])


def _default_split(run: Any) -> str:
    return "validation" if "validation" in run.splits else "train"
