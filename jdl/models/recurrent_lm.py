"""A recurrent language model with truncated backpropagation through time."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Dropout
from jdl.models.rnn import CELLS
from jdl.state import CACHE, CARRY


class RecurrentLM(nn.Module):
    """Embedding, stacked recurrent layers, and logits (Zaremba et al., 2014).

    Maps tokens (batch, time) int32 to logits (batch, time, vocab) float32. With `targets` and
    `weights` (batch, time), it returns the weighted sum of their cross-entropies in nats, a float32
    scalar.

    With `carry`, each row of a training batch starts from the final state of the same row in the
    previous batch, without a gradient through it: truncated backpropagation through time (Williams
    and Peng, 1990). Rows whose `begins` (batch,) is True start from zero. The data must be in that
    order, as from `jdl.data.Streams`. The collection `carry` holds the states, (batch, hidden_size)
    per layer. Evaluation and prediction start every window from zero. With `decode`, the states are
    read from and written to the collection `cache`, initially zero.
    """

    vocab_size: int = 65  # number of token ids
    hidden_size: int = 256  # of the embedding and of each recurrent layer
    num_layers: int = 2  # recurrent layers
    cell: Literal["simple", "lstm", "gru"] = "lstm"  # of the recurrent layers
    dropout_rate: float = 0.0  # of the embedding and of each layer's output
    tie_word_embeddings: bool = False  # logits by the token embedding (Press and Wolf, 2017)
    carry: bool = True  # start from the previous batch's state in training
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        begins: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """Returns logits, or with targets the sum of cross-entropies; ignores `positions`."""
        del positions
        init = nn.initializers.normal(0.05)
        embed = nn.Embed(
            self.vocab_size, self.hidden_size, embedding_init=init, dtype=self.dtype, name="tokens"
        )
        kernel = embed.embedding
        if not self.tie_word_embeddings:
            kernel = self.param("logits", init, (self.vocab_size, self.hidden_size))
        # Not applied to recurrent connections (Zaremba et al., 2014, section 3.2).
        drop = Dropout(self.dropout_rate, deterministic=not train)
        x = drop(embed(tokens))
        for index in range(self.num_layers):
            x = drop(self._layer(index, x, begins, train, decode))
        if targets is None:
            return (x @ kernel.astype(self.dtype).T).astype(jnp.float32)
        return ops.linear_cross_entropy(x, kernel, targets, weights)

    def _layer(
        self, index: int, x: jax.Array, begins: jax.Array | None, train: bool, decode: bool
    ) -> jax.Array:
        """Applies a recurrent layer, reading and writing its carried or cached state."""
        layer = CELLS[self.cell](self.hidden_size, dtype=self.dtype)
        initial, name = layer.initial_state(x.shape[0]), f"layer_{index}"
        if decode:
            x, last = layer.unroll(x, self.get_variable(CACHE, name, initial))
            self.put_variable(CACHE, name, last)
            return x
        if not (self.carry and (train or self.is_initializing())):
            return layer(x)
        state = jax.lax.stop_gradient(self.get_variable(CARRY, name, initial))
        if begins is not None:
            state = jax.tree.map(lambda s: jnp.where(begins[:, None], 0, s), state)
        x, last = layer.unroll(x, state)
        self.put_variable(CARRY, name, last if train else initial)
        return x
