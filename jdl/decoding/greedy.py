"""The likeliest token, time after time."""

from typing import Any

import jax
import jax.numpy as jnp

from jdl.decoding.cache import Step
from jdl.typing import PyTree


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
      step: reads on, tokens (rows, 1).
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
