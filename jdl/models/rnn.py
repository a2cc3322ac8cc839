"""Recurrent networks from a sequence to one output."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import GRU, LSTM, Bidirectional, Dropout, SimpleRNN

CELLS = {"simple": SimpleRNN, "lstm": LSTM, "gru": GRU}


class RNN(nn.Module):
    """Embedding, stacked recurrent layers, and a dense layer on the last state.

    Maps tokens (batch, time) int32, or with `vocab_size=0` values (batch, time, channels), to
    (batch, features) float32. A bidirectional network uses the last states of both directions.
    """

    vocab_size: int = 10_000  # rows of the embedding; 0: real inputs, without one
    embed_dim: int = 128  # size of an embedding
    hidden_size: int = 128  # of each recurrent layer, in each direction
    num_layers: int = 1  # recurrent layers
    cell: Literal["simple", "lstm", "gru"] = "lstm"  # of the recurrent layers
    bidirectional: bool = False  # add a backward layer to each
    features: int = 1  # outputs of the last layer: classes, or values to regress
    dropout_rate: float = 0.0  # after each recurrent layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        x = inputs
        if self.vocab_size:
            init = nn.initializers.normal(0.05)
            embed = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=init, dtype=self.dtype)
            x = embed(inputs)
        for index in range(self.num_layers):
            layer = CELLS[self.cell](self.hidden_size, dtype=self.dtype)
            if self.bidirectional:
                layer = Bidirectional(layer, CELLS[self.cell](self.hidden_size, dtype=self.dtype))
            x = layer(x)
            if index == self.num_layers - 1:
                x = self._last(x)
            x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def _last(self, x: jax.Array) -> jax.Array:
        """Returns the final states: forward at the end, backward at the start."""
        if not self.bidirectional:
            return x[:, -1]
        return jnp.concatenate([x[:, -1, : self.hidden_size], x[:, 0, self.hidden_size :]], axis=-1)
