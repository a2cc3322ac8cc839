"""Dropout whose rate may be an array."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.tracing import is_number


class Dropout(nn.Module):
    """Zeroes elements at random and scales the others up (Srivastava et al., 2014).

    Bitwise equal to `flax.linen.Dropout`, except that `rate` may be a traced array: runs with
    different rates can then be trained in one vmapped step.
    """

    rate: float  # probability of zeroing an element, from 0 to 1
    deterministic: bool | None = None  # return the input unchanged, as in evaluation

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Applies a random mask to x (...); set `deterministic` here or as a field, not both."""
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        known = is_number(self.rate)
        if known and self.rate == 0:
            return x
        if known and self.rate == 1:
            return jnp.zeros_like(x)  # the quotient's gradient would be 0/0
        kept = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), p=kept, shape=x.shape)
        kept = kept if known else jnp.where(kept > 0, kept, 1)
        return jax.lax.select(mask, x / kept, jnp.zeros_like(x))
