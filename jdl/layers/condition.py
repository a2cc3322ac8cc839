"""Embeddings of the time and class that condition a diffusion model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers.position import sinusoidal


class ConditionEmbedding(nn.Module):
    """Embeds a time, and a condition if there is one, by a network of two layers.

    The time's sines and cosines are those of a position up to 1000, as in DDPM (Ho et al., 2020).
    """

    embed_dim: int  # of the embedding, even
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, time: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Returns (batch, embed).

        Args:
          time: (batch,) float32, from 0 to 1.
          condition: (batch, features), such as a one-hot class; None: none.
        """
        waves = sinusoidal(1000 * time.astype(jnp.float32), self.embed_dim).astype(self.dtype)
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="time")(waves)
        if condition is not None:
            x = x + nn.Dense(
                self.embed_dim, use_bias=False, dtype=self.dtype, name="condition",
                kernel_init=nn.initializers.normal(1.0),
            )(condition)  # fmt: skip
        return nn.Dense(self.embed_dim, dtype=self.dtype, name="joint")(nn.silu(x))
