"""Greedy and beam search with an encoder-decoder model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.decoding.beam import beam_search
from jdl.decoding.cache import Step, batch_axes
from jdl.decoding.greedy import greedy
from jdl.errors import UserError
from jdl.state import CACHE
from jdl.typing import PyTree


def translate(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    sources: jax.Array,
    max_new_tokens: int,
    *,
    bos_token_id: int,
    eos_token_id: int,
    suppress_tokens: Sequence[int] = (),
    num_beams: int = 1,
    alpha: float = 0.6,
) -> jax.Array:
    """Decodes a target for each source, greedily or by beam search; call it under `jit`.

    Args:
      model: has the methods `encode` and `decode` of `jdl.models.EncoderDecoder`.
      variables: the model's parameters and other collections.
      sources: (rows, keys) int32, padded with the model's `pad_token_id`.
      max_new_tokens: maximum length of a target, its end token included.
      bos_token_id: token before the first of a target.
      eos_token_id: token that ends a target.
      suppress_tokens: tokens that no target contains.
      num_beams: partial targets kept at each step; 1 is greedy search.
      alpha: exponent of the length penalty of beam search.

    Returns:
      (rows, max_new_tokens) int32, padded with `eos_token_id`.

    Raises:
      UserError: `max_new_tokens` exceeds the model's `max_position_embeddings`, or a setting is
        out of range.
    """
    context = getattr(model, "max_position_embeddings", max_new_tokens)
    if max_new_tokens > context:
        raise UserError(
            f"targets of {max_new_tokens} tokens do not fit the model's context of {context}"
        )
    first = jnp.full(len(sources), bos_token_id, jnp.int32)
    make = partial(
        decoder, model, variables,
        cache_length=max_new_tokens, num_beams=num_beams, suppress_tokens=suppress_tokens,
    )  # fmt: skip
    step, cache = make(sources)
    if num_beams == 1:
        return greedy(step, cache, first, 0, max_new_tokens, eos_token_id=eos_token_id)
    axes = batch_axes(lambda rows: make(jnp.zeros((rows, sources.shape[1]), jnp.int32))[1])
    search = partial(beam_search, step, cache, axes, first, 0, max_new_tokens)
    return search(eos_token_id=eos_token_id, num_beams=num_beams, alpha=alpha)[0]


def decoder(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    sources: jax.Array,
    cache_length: int,
    *,
    num_beams: int = 1,
    suppress_tokens: Sequence[int] = (),
) -> tuple[Step, PyTree]:
    """Encodes sources and returns the step and the cache that decode them token by token.

    Args:
      model: has the methods `encode` and `decode` of `jdl.models.EncoderDecoder`.
      variables: the model's parameters and other collections.
      sources: (rows, keys) int32.
      cache_length: maximum number of tokens that the cache holds.
      num_beams: adjacent copies of each row in the calls of the step.
      suppress_tokens: tokens whose logits become minus infinity.

    Returns:
      step: decodes one token of each of rows * num_beams sequences.
      cache: before the first step, one entry per row.
    """
    memory: Any = model.apply(variables, sources, method="encode")  # (rows, keys, embed)

    def decode(
        tokens: jax.Array, positions: jax.Array, cache: PyTree, copies: int
    ) -> tuple[jax.Array, PyTree]:
        memories, repeated = (jnp.repeat(x, copies, 0) for x in (memory, sources))
        logits, changed = model.apply(
            {**variables, **cache}, tokens, memories, repeated, positions,
            decode=True, mutable=CACHE, method="decode",
        )  # fmt: skip
        return logits, changed[CACHE]

    def init_cache(length: int) -> PyTree:
        tokens = jnp.zeros((len(sources), length), jnp.int32)
        return decode(tokens, jnp.arange(length)[None], {}, 1)[1]

    def step(tokens: jax.Array, position: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
        positions = position + jnp.arange(tokens.shape[1])[None]
        logits, cache = decode(tokens, positions, {CACHE: cache}, num_beams)
        return logits.at[..., jnp.array(suppress_tokens, jnp.int32)].set(-jnp.inf), cache

    # The call that creates a cache decodes dummy tokens as long as the cache. One token suffices:
    # the axes that a longer call would enlarge are padded instead.
    shapes = jax.eval_shape(lambda: init_cache(cache_length))
    return step, jax.tree.map(_pad_to, init_cache(1), shapes)


def _pad_to(short: jax.Array, long: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.pad(short, [(0, b - a) for a, b in zip(short.shape, long.shape, strict=True)])
