"""How a token is chosen among all that could come next."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdl.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Draws from the model's probabilities, sharpened and cut off; or takes the likeliest token.

    Logits are divided by the temperature first; then `top_k` of them are left (Fan et al., 2018),
    and of these the fewest that together have a probability of `top_p` (Holtzman et al., 2020).
    Where several are equal to the last that is left, all of them are.
    """

    temperature: float = 1.0  # below 1 sharpens, above 1 flattens; 0 always takes the likeliest
    top_k: int | None = None  # draw among so many likeliest tokens; None: among all
    top_p: float | None = None  # draw among the likeliest with this probability; None: among all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"the temperature must be 0 or more, not {self.temperature:g}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must leave 1 token or more, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is a probability in (0, 1], not {self.top_p:g}")


COLDEST = 1e-30
"""Logits over a lower temperature may overflow: the likeliest token is then taken."""

PLAIN = Sampling()
"""Draws from the model's probabilities as they are."""


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits of the distribution that is drawn from, -inf for what was cut off.

    Args:
      logits: (..., vocabulary).
      sampling: whose temperature is not below `COLDEST`.

    Returns:
      (..., vocabulary) float32.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        chances = jax.nn.softmax(falling)
        likelier = jnp.cumsum(chances, axis=-1) - chances
        least = jnp.min(falling, axis=-1, keepdims=True, where=likelier < sampling.top_p,
                        initial=jnp.inf)  # fmt: skip
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def draw(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """A token for each row, (rows,) int32, of logits (rows, vocabulary) and typed keys (rows,)."""
    if sampling.temperature < COLDEST:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filtered(logits, sampling)).astype(jnp.int32)
