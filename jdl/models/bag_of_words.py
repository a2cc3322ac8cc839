"""Text classification without word order."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import Dropout


class BagOfWords(nn.Module):
    """The mean embedding of a text's words, then a dense layer: fastText (Joulin et al., 2017).

    Maps tokens (batch, time) int32, padded with 0, to logits (batch, num_classes) float32.
    """

    vocab_size: int = 10_000  # rows of the embedding
    embed_dim: int = 16  # size of an embedding
    num_classes: int = 1  # logits of the last layer
    dropout_rate: float = 0.0  # of the mean embedding
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        init = nn.initializers.normal(0.05)
        embed = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=init, dtype=self.dtype)
        known = (tokens > 0)[..., None]
        x = (embed(tokens) * known).sum(1) / jnp.maximum(known.sum(1), 1).astype(self.dtype)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
