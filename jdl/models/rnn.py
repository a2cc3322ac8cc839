"""Recurrent networks that read a sequence and give one output."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import GRU, LSTM, Bidirectional, Dropout, SimpleRNN

CELLS = {"simple": SimpleRNN, "lstm": LSTM, "gru": GRU}


class RNN(nn.Module):
    """Embedding, recurrent layers one upon the other, and a dense layer on the last state.

    Takes tokens (batch, time) int32, or without a vocabulary numbers (batch, time, features), and
    gives (batch, outputs) float32. Of two directions, the last states of both count.
    """

    vocab_size: int = 10_000  # tokens that have an embedding; 0: the inputs are numbers
    embed_dim: int = 128  # of an embedding
    hidden_size: int = 128  # of each recurrent layer, in each direction
    num_layers: int = 1  # recurrent layers
    cell: Literal["simple", "lstm", "gru"] = "lstm"  # of the recurrent layers
    bidirectional: bool = False  # read backwards too
    features: int = 1  # units of the last layer
    dropout_rate: float = 0.0  # share dropped in training after each recurrent layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layers."""
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
        """The state that has read everything: at the end, and backwards at the beginning."""
        if not self.bidirectional:
            return x[:, -1]
        return jnp.concatenate([x[:, -1, : self.hidden_size], x[:, 0, self.hidden_size :]], axis=-1)
