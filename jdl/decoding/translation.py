"""What a model with encoder and decoder writes of a source."""

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
    length: int,
    *,
    begin: int,
    end: int,
    never: Sequence[int] = (),
    beams: int = 1,
    alpha: float = 0.6,
) -> jax.Array:
    """The target that greedy or beam search finds for each source. To be called compiled.

    Args:
      model: has the methods `encode` and `decode` of `jdl.models.EncoderDecoder`.
      variables: its own.
      sources: (rows, keys) int32, filled up with the model's padding.
      length: of the longest target, its end included.
      begin: the token that stands before a target.
      end: the token that ends one.
      never: tokens that no target has.
      beams: how many beginnings are kept; 1 always takes the likeliest token.
      alpha: power of the length penalty, where there are several (`beam_search`).

    Returns:
      (rows, length) int32, filled up with `end` from where a target ends.

    Raises:
      UserError: the length is beyond the model's context, or a setting is out of range.
    """
    context = getattr(model, "context", length)
    if length > context:
        raise UserError(f"targets of {length} tokens do not fit the model's context of {context}")
    first = jnp.full(len(sources), begin, jnp.int32)
    make = partial(decoder, model, variables, length=length, copies=beams, never=never)
    step, cache = make(sources)
    if beams == 1:
        return greedy(step, cache, first, 0, length, end=end)
    axes = batch_axes(lambda rows: make(jnp.zeros((rows, sources.shape[1]), jnp.int32))[1])
    search = partial(beam_search, step, cache, axes, first, 0, length)
    return search(end=end, beams=beams, alpha=alpha)[0]


def decoder(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    sources: jax.Array,
    length: int,
    *,
    copies: int = 1,
    never: Sequence[int] = (),
) -> tuple[Step, PyTree]:
    """How a model goes on with what it writes of each source, token by token.

    Args:
      model: has the methods `encode` and `decode` of `jdl.models.EncoderDecoder`.
      variables: its own.
      sources: (rows, keys) int32; they are encoded here, once.
      length: tokens that a cache has room for.
      copies: of each row in the calls of the step, side by side, as in a beam.
      never: tokens whose logits become minus infinity.

    Returns:
      step: for rows * copies; it takes one token of each.
      cache: before the first step, each row once.
    """
    memory: Any = model.apply(variables, sources, method="encode")

    def decode(
        tokens: jax.Array, positions: jax.Array, cache: PyTree, times: int
    ) -> tuple[jax.Array, PyTree]:
        seen, given = (jnp.repeat(x, times, 0) for x in (memory, sources))
        logits, changed = model.apply(
            {**variables, **cache}, tokens, seen, given, positions,
            decode=True, mutable=CACHE, method="decode",
        )  # fmt: skip
        return logits, changed[CACHE]

    def empty(length: int) -> PyTree:
        tokens = jnp.zeros((len(sources), length), jnp.int32)
        return decode(tokens, jnp.arange(length)[None], {}, 1)[1]

    def step(tokens: jax.Array, position: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
        positions = position + jnp.arange(tokens.shape[1])[None]
        logits, cache = decode(tokens, positions, {CACHE: cache}, copies)
        return logits.at[..., jnp.array(never, jnp.int32)].set(-jnp.inf), cache

    # The call that makes a cache reads tokens that mean nothing: one of them is enough, and what
    # would be longer for more is filled up.
    return step, jax.tree.map(_filled, empty(1), jax.eval_shape(lambda: empty(length)))


def _filled(short: jax.Array, long: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.pad(short, [(0, b - a) for a, b in zip(short.shape, long.shape, strict=True)])
