"""Greedy search: the most probable token at each step."""

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
    max_new_tokens: int,
    *,
    eos_token_id: int,
) -> jax.Array:
    """Adds the most probable token until all rows have ended. Call it inside a compiled function.

    Args:
      step: decodes one token per row, tokens (rows, 1).
      cache: of the tokens before `first`.
      first: the last known token of each row, (rows,) int32.
      position: of `first`, a scalar.
      max_new_tokens: maximum number of tokens added.
      eos_token_id: token that ends a sequence.

    Returns:
      (rows, max_new_tokens) int32, padded with `eos_token_id`.
    """
    written = jnp.full((len(first), max_new_tokens), eos_token_id, jnp.int32)

    def unfinished(carry: Any) -> Any:
        count, live, *_ = carry
        return (count < max_new_tokens) & live.any()

    def advance(carry: Any) -> Any:
        count, live, last, written, cache = carry
        logits, cache = step(last[:, None], position + count, cache)
        last = jnp.where(live, logits[:, 0].argmax(-1), eos_token_id).astype(jnp.int32)
        return count + 1, last != eos_token_id, last, written.at[:, count].set(last), cache

    start = (jnp.int32(0), jnp.ones(len(first), bool), first.astype(jnp.int32), written, cache)
    return jax.lax.while_loop(unfinished, advance, start)[3]
