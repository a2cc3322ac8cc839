"""What a decoder writes from an encoded source: the likeliest token, time after time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.state import CACHE
from jdl.typing import PyTree

Step = Callable[[jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]]
"""Tokens (rows, n), the position of the first of them and a cache, to logits (rows, n, vocabulary)
and the cache after them."""


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


def greedy(
    step: Step,
    cache: PyTree,
    first: jax.Array,
    position: int | jax.Array,
    length: int,
    *,
    end: int,
) -> jax.Array:
    """Adds the likeliest token, until all rows have ended. To be called in a compiled function.

    Args:
      step: see `decoder`.
      cache: of what was read before `first`.
      first: the token that each row is continued after, (rows,) int32.
      position: of `first`.
      length: most tokens that are added.
      end: the token that ends a text.

    Returns:
      (rows, length) int32, filled up with `end`.
    """
    written = jnp.full((len(first), length), end, jnp.int32)

    def going(carry: Any) -> Any:
        count, live, *_ = carry
        return (count < length) & live.any()

    def one(carry: Any) -> Any:
        count, live, last, written, cache = carry
        logits, cache = step(last[:, None], position + count, cache)
        last = jnp.where(live, logits[:, 0].argmax(-1), end).astype(jnp.int32)
        return count + 1, last != end, last, written.at[:, count].set(last), cache

    begun = (jnp.int32(0), jnp.ones(len(first), bool), first.astype(jnp.int32), written, cache)
    return jax.lax.while_loop(going, one, begun)[3]


def _filled(short: jax.Array, long: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.pad(short, [(0, b - a) for a, b in zip(short.shape, long.shape, strict=True)])
