"""Recurrent networks that read a text and give one output."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import GRU, LSTM


class RNN(nn.Module):
    """Embedding, a recurrent layer, and a dense layer on its last state.

    Takes tokens (batch, time) int32 and gives (batch, outputs) float32.
    """

    vocabulary: int = 10_000  # tokens that have an embedding
    features: int = 128  # of an embedding
    units: int = 128  # of the recurrent layer
    cell: Literal["lstm", "gru"] = "lstm"  # of the recurrent layer
    outputs: int = 1  # units of the last layer
    dropout: float = 0.0  # share of the last state dropped in training
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layers."""
        init = nn.initializers.normal(0.05)
        x = nn.Embed(self.vocabulary, self.features, embedding_init=init, dtype=self.dtype)(tokens)
        layer = {"lstm": LSTM, "gru": GRU}[self.cell]
        x = layer(self.units, dtype=self.dtype)(x)[:, -1]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
