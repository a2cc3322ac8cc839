"""Texts by their words alone."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import Dropout


class BagOfWords(nn.Module):
    """The mean embedding of a text's words, then a dense layer: fastText (Joulin et al., 2017).

    Takes tokens (batch, time) int32, 0 where a text is padded, and gives (batch, outputs) float32.
    The order of the words is lost.
    """

    vocab_size: int = 10_000  # tokens that have an embedding
    embed_dim: int = 16  # of an embedding
    num_classes: int = 1  # units of the last layer
    dropout_rate: float = 0.0  # share of the mean dropped in training
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layers."""
        init = nn.initializers.normal(0.05)
        embed = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=init, dtype=self.dtype)
        known = (tokens > 0)[..., None]
        x = (embed(tokens) * known).sum(1) / jnp.maximum(known.sum(1), 1).astype(self.dtype)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
