"""Temperature, top-k and top-p sampling."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdl.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: temperature, then top-k, then top-p.

    Logits are divided by the temperature, then the `top_k` largest are kept (Fan et al., 2018), and
    of these the fewest whose total probability reaches `top_p` (Holtzman et al., 2020). Ties with
    the smallest kept logit are kept too.
    """

    temperature: float = 1.0  # below 1 sharpens, above 1 flattens; 0 is greedy
    top_k: int | None = None  # sample among this many most likely tokens; None: all
    top_p: float | None = None  # sample among the most likely of this total probability; None: all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"the temperature must be 0 or more, not {self.temperature:g}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must leave 1 token or more, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is a probability in (0, 1], not {self.top_p:g}")


COLDEST = 1e-30
"""Below this temperature logits may overflow, so the most likely token is taken."""

PLAIN = Sampling()
"""Samples from the model's probabilities unchanged."""


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns the logits to sample from, -inf for excluded tokens.

    Args:
      logits: (..., vocab).
      sampling: settings with a temperature of at least `COLDEST`.

    Returns:
      (..., vocab) float32.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        # A token is kept while the tokens before it have less than top_p: the first always is.
        falling = jnp.sort(logits, axis=-1, descending=True)
        chances = jax.nn.softmax(falling)
        likelier = jnp.cumsum(chances, axis=-1) - chances
        least = jnp.min(falling, axis=-1, keepdims=True, where=likelier < sampling.top_p,
                        initial=jnp.inf)  # fmt: skip
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """Samples a token per row, (rows,) int32, from logits (rows, vocab) with typed keys (rows,)."""
    if sampling.temperature < COLDEST:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filter_logits(logits, sampling)).astype(jnp.int32)
