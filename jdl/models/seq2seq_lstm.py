"""LSTM encoder-decoder with attention (Bahdanau et al., 2015; Luong et al., 2015)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import LSTM, Dropout
from jdl.layers.recurrent import State
from jdl.state import CACHE


class LSTMEncoderDecoder(nn.Module):
    """A bidirectional LSTM encoder and an LSTM decoder with attention.

    Has the inputs, outputs and methods of `EncoderDecoder`. The decoder's initial state is a
    projection of the mean encoder state (Sennrich et al., 2017). Its last layer attends to the
    encoder, and context and state together give the logits (Luong et al., 2015, section 3.1, score
    `general`). There is no input feeding, so that all steps attend at once. Both sides and the
    logits share one embedding.
    """

    vocab_size: int = 8192  # shared by source and target
    num_layers: int = 2  # recurrent layers of the encoder, and of the decoder
    hidden_size: int = 256  # of the embedding and of each layer; half per direction in the encoder
    pad_token_id: int = 0  # the token that pads sequences; it is masked
    dropout_rate: float = 0.2  # of the embedding and of each layer's output
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Creates the submodules."""
        init = nn.initializers.normal(self.hidden_size**-0.5)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.hidden_size))
        half = self.hidden_size // 2
        self.forwards = [LSTM(half, self.dtype) for _ in range(self.num_layers)]
        self.backwards = [LSTM(half, self.dtype) for _ in range(self.num_layers)]
        self.decoders = [LSTM(self.hidden_size, self.dtype) for _ in range(self.num_layers)]
        self.begins = [nn.Dense(self.hidden_size, dtype=self.dtype) for _ in range(self.num_layers)]
        self.query = nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype)
        self.combine = nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype)
        self.drop = Dropout(self.dropout_rate)

    def __call__(
        self,
        source: jax.Array,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        smoothing: float = 0.0,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, or with targets the sum of label-smoothed cross-entropies."""
        x = self._decoded(tokens, self.encode(source, train), source, train=train)
        if targets is None:
            return self._logits(x)
        return ops.linear_cross_entropy(x, self.embedding, targets, weights, smoothing)

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """Encodes a source (batch, keys) to a memory (batch, keys, units)."""
        turned = self._turned(source)
        x = self._embed(source, train)
        for forward, backward in zip(self.forwards, self.backwards, strict=True):
            back = _take(backward(_take(x, turned)), turned)
            x = self._drop(jnp.concatenate([forward(x), back], -1), train)
        return x

    def decode(
        self,
        tokens: jax.Array,
        memory: jax.Array,
        source: jax.Array,
        positions: jax.Array | None = None,
        decode: bool = False,
    ) -> jax.Array:
        """Returns logits (batch, time, vocab) of tokens, given the encoded source.

        With `decode`, the states are read from and written to the collection `cache`; the first
        such call creates it with the initial states. `positions` is unused.
        """
        del positions
        return self._logits(self._decoded(tokens, memory, source, decode=decode))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the embeddings of tokens, (batch, time, units)."""
        return self.embedding[tokens]

    def _decoded(
        self,
        tokens: jax.Array,
        memory: jax.Array,
        source: jax.Array,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        seen = source != self.pad_token_id
        mean = jnp.where(seen[..., None], memory, 0).sum(1) / seen.sum(1, keepdims=True)
        x = self._embed(tokens, train)
        for index, layer in enumerate(self.decoders):
            state = jnp.tanh(self.begins[index](mean)), layer.initial_state(len(tokens))[1]
            x = self._drop(self._resumed(index, layer, x, state, decode), train)
        heads = (y[:, :, None] for y in (self.query(x), memory, memory))
        context = ops.attention(*heads, mask=seen[:, None, None])[:, :, 0]
        return self._drop(jnp.tanh(self.combine(jnp.concatenate([context, x], -1))), train)

    def _resumed(
        self, index: int, layer: LSTM, x: jax.Array, state: State, decode: bool
    ) -> jax.Array:
        """Applies a layer; with `decode`, from its cached state."""
        name = f"decoder_{index}"
        made = decode and self.has_variable(CACHE, name)
        x, last = layer.unroll(x, self.get_variable(CACHE, name) if made else state)
        if decode:
            self.put_variable(CACHE, name, last if made else state)
        return x

    def _turned(self, source: jax.Array) -> jax.Array:
        """Returns indices (batch, keys) that reverse each row but leave its padding at the end."""
        places, count = jnp.arange(source.shape[1]), (source != self.pad_token_id).sum(1)[:, None]
        return jnp.where(places < count, count - 1 - places, places)

    def _embed(self, tokens: jax.Array, train: bool) -> jax.Array:
        return self._drop(self.embed(tokens).astype(self.dtype), train)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return self.drop(x, deterministic=not train)

    def _logits(self, x: jax.Array) -> jax.Array:
        return (x @ self.embedding.astype(self.dtype).T).astype(jnp.float32)


def _take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Gathers x (batch, time, features) at indices (batch, time)."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
