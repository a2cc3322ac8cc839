"""Autoregressive generation with a language model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.vocabulary import check_token_ids
from jdl.decoding.cache import apply_with_cache, init_cache
from jdl.decoding.sampling import PLAIN, Sampling, sample
from jdl.errors import UserError
from jdl.tracing import mode_arguments, takes_argument
from jdl.typing import Key, PyTree


def generate(
    model: nn.Module,
    params: PyTree,
    prompts: Iterable[Iterable[int]],
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    key: Key | None = None,
    *,
    eos_token_id: int | None = None,
    use_cache: bool | None = None,
    collections: Mapping[str, PyTree] | None = None,
) -> np.ndarray:
    """Generates continuations of several prompts in one batch.

    The tokens of a row depend only on its prompt, its index and the key, not on other rows. It
    compiles once per number of prompts, shortest and longest length, and settings.

    Args:
      model: maps tokens (rows, time) int32 to causal logits (rows, time, vocab). With an argument
        `decode`, as in `jdl.models.GPT`, it reads each token once; otherwise it reads the whole
        text again for each new token.
      params: its parameters.
      prompts: token ids, of any lengths.
      max_new_tokens: number of tokens per prompt.
      sampling: temperature, top-k and top-p.
      key: typed PRNG key; None: `jax.random.key(0)`.
      eos_token_id: token that ends a text; the rest of the row is padded with it.
      use_cache: whether to read each token once; None: if the model supports it.
      collections: the model's other variables.

    Returns:
      (rows, max_new_tokens) int32.

    Raises:
      UserError: a prompt is empty or holds a token beyond the model's vocabulary, `max_new_tokens`
        is less than 1, or prompt and new tokens are beyond the model's context.
    """
    known = [np.asarray(list(prompt), np.int32) for prompt in prompts]
    if not known:
        raise UserError("there is no prompt to continue")
    form = _form(model, sampling, use_cache, eos_token_id)
    variables = {"params": params, **(collections or {})}
    _check(form, variables, known, max_new_tokens)
    lengths = np.array([len(prompt) for prompt in known], np.int32)
    longest, context = int(lengths.max()), getattr(model, "max_position_embeddings", None)
    # The last token is never read.
    if context is not None and longest + max_new_tokens - 1 > context:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} more do not fit the model's "
            f"context of {context}"
        )
    tokens = np.full((len(known), longest + max_new_tokens), form.filler, np.int32)
    for row, prompt in zip(tokens, known, strict=True):
        row[: len(prompt)] = prompt
    state = _begin(form, variables, tokens, np.zeros(len(known), bool), int(lengths.min()))
    state = _advance(form, variables, state, lengths, _keys(key, len(known)), 0, tokens.shape[1])
    made = np.array(state.tokens)
    return np.stack([row[n : n + max_new_tokens] for row, n in zip(made, lengths, strict=True)])


def stream(
    model: nn.Module,
    params: PyTree,
    prompt: Iterable[int],
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    key: Key | None = None,
    *,
    samples: int = 1,
    chunk: int = 8,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
    context_length: int | None = None,
    collections: Mapping[str, PyTree] | None = None,
) -> Iterator[np.ndarray]:
    """Generates continuations of one prompt and yields tokens as they are sampled.

    When the context is full, the model reads its last half again as a new text and continues. There
    is no limit on the number of tokens.

    Args:
      model: see `generate`.
      params: its parameters.
      prompt: tokens.
      max_new_tokens: maximum number of tokens per sample.
      sampling: temperature, top-k and top-p.
      key: typed PRNG key; None: `jax.random.key(0)`.
      samples: number of continuations.
      chunk: tokens sampled per call to the device.
      eos_token_id: token that ends a text; the rest of the row is padded with it.
      vocab_size: sample among the first `vocab_size` tokens; None: all.
      context_length: tokens that the model can read; None: its `max_position_embeddings`,
        or any number.
      collections: the model's other variables.

    Yields:
      (samples, up to chunk) int32, `max_new_tokens` of each in all; fewer once all have ended.

    Raises:
      UserError: as `generate`, or the prompt alone is longer than the context.
    """
    known = np.asarray(list(prompt), np.int32)
    form = _form(model, sampling, None, eos_token_id, vocab_size)
    variables = {"params": params, **(collections or {})}
    _check(form, variables, [known], max_new_tokens)
    context = context_length or getattr(model, "max_position_embeddings", None)
    if context is not None and len(known) > context:
        raise UserError(
            f"the prompt has {len(known)} tokens, more than the model's context of {context}"
        )
    known = np.tile(known, (samples, 1))
    return _stream(form, variables, known, max_new_tokens, _keys(key, samples), chunk, context)


@dataclass(frozen=True)
class _Form:
    """Static arguments of the compiled functions."""

    model: nn.Module
    sampling: Sampling
    use_cache: bool
    eos_token_id: int | None
    vocab_size: int | None  # sample among the first `vocab_size` tokens

    @property
    def filler(self) -> int:
        return 0 if self.eos_token_id is None else self.eos_token_id


class _State(NamedTuple):
    tokens: Any  # (rows, total) int32, of which `position` are known
    position: Any  # int32
    stopped: Any  # (rows,) bool: the end was drawn
    cache: PyTree


def _form(
    model: nn.Module,
    sampling: Sampling,
    use_cache: bool | None,
    eos_token_id: int | None,
    vocab_size: int | None = None,
) -> _Form:
    use_cache = takes_argument(model, "decode") if use_cache is None else use_cache
    return _Form(model, sampling, use_cache, eos_token_id, vocab_size)


def _check(form: _Form, variables: PyTree, prompts: list[np.ndarray], max_new_tokens: int) -> None:
    """Raises a UserError for empty prompts, unknown tokens and a length below 1."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    size = jax.eval_shape(partial(_logits, form.model), variables, one).shape[-1]
    for prompt in prompts:
        if not prompt.size:
            raise UserError("the prompt is empty: give it a token or more")
        check_token_ids(prompt, size, "the prompt", hint="")


def _keys(key: Key | None, rows: int) -> jax.Array:
    key = jax.random.key(0) if key is None else key
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


def _stream(
    form: _Form,
    variables: PyTree,
    known: np.ndarray,
    max_new_tokens: int,
    keys: jax.Array,
    chunk: int,
    context: int | None,
) -> Iterator[np.ndarray]:
    rows, begin = known.shape
    total = begin + max_new_tokens if context is None else min(begin + max_new_tokens, context + 1)
    made, stopped = 0, np.zeros(rows, bool)
    while made < max_new_tokens and not stopped.all():
        begin, before = known.shape[1], made
        tokens = np.full((rows, total), form.filler, np.int32)
        tokens[:, :begin] = known
        state = _begin(form, variables, tokens, stopped, begin)
        lengths, at, last = (
            np.full(rows, begin, np.int32),
            begin,
            min(total, begin + max_new_tokens - made),
        )
        while at < last and not stopped.all():
            until = min(at + chunk, last)
            state = _advance(form, variables, state, lengths, keys, before, until)
            reached, stopped = int(state.position), np.array(state.stopped)
            yield np.array(state.tokens)[:, at:reached]
            made, at = made + reached - at, reached
        known = np.array(state.tokens)[:, at - max((context or 0) // 2, 1) : at]


@partial(jax.jit, static_argnames=("form", "prefix"))
def _begin(form: _Form, variables: PyTree, tokens: Any, stopped: Any, prefix: int) -> _State:
    """Creates the cache and prefills it with all but the last of the `prefix` known tokens."""
    tokens, cache = jnp.asarray(tokens), None
    if form.use_cache:
        cache = init_cache(form.model, variables, tokens.shape[0], tokens.shape[1] - 1)
        if prefix > 1:
            before = tokens[:, : prefix - 1]
            _, cache = apply_with_cache(form.model, variables, before, jnp.int32(0), cache)
    return _State(tokens, jnp.int32(prefix), jnp.asarray(stopped), cache)


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def _advance(
    form: _Form, variables: PyTree, state: _State, lengths: Any, keys: Any, drawn: Any, until: Any
) -> _State:
    """Samples up to the position `until`, or until all rows have stopped.

    All rows share one position: rows whose prompt, of `lengths` (rows,), is longer take their token
    from it. `drawn` counts the tokens sampled before this text began.
    """

    def going(state: _State) -> Any:
        return (state.position < until) & ~state.stopped.all()

    def one(state: _State) -> _State:
        at = state.position
        logits, cache = _next(form, variables, state)
        here = jax.vmap(jax.random.fold_in)(keys, at - lengths + drawn)
        token = sample(logits[:, : form.vocab_size], form.sampling, here)
        given, stopped = at < lengths, state.stopped
        if form.eos_token_id is not None:
            token = jnp.where(stopped, form.eos_token_id, token)
            stopped = stopped | (~given & (token == form.eos_token_id))
        known = jax.lax.dynamic_index_in_dim(state.tokens, at, 1, keepdims=False)
        token = jnp.where(given, known, token)[:, None]
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token, at, 1)
        return _State(tokens, at + 1, stopped, cache)

    return jax.lax.while_loop(going, one, state)


def _next(form: _Form, variables: PyTree, state: _State) -> tuple[jax.Array, PyTree]:
    """Returns logits (rows, vocab) of the token at the position, and the updated cache."""
    last = state.position - 1
    if form.use_cache:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, axis=1)
        logits, cache = apply_with_cache(form.model, variables, token, last, state.cache)
        return logits[:, 0], cache
    logits = _logits(form.model, variables, state.tokens[:, :-1])
    return jax.lax.dynamic_index_in_dim(logits, last, 1, keepdims=False), state.cache


def _logits(model: nn.Module, variables: PyTree, tokens: Any) -> Any:
    return model.apply(variables, tokens, **mode_arguments(model, train=False))
