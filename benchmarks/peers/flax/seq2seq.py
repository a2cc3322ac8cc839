"""The transformer with an encoder and a decoder, written like Flax's WMT example."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class Layer(nn.Module):
    """Self-attention, in a decoder cross-attention, and an MLP, with residuals and norms."""

    num_heads: int  # of each attention
    mlp_dim: int  # hidden units of the feed-forward network
    pre_norm: bool  # normalize before each sublayer, not after it
    dtype: Any  # of the computation

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
    ) -> jax.Array:
        """(batch, time, width) to the same; masks are True where attention is allowed."""
        attention = self._attention("attention")
        x = self._add(x, "norm1", lambda y: attention(y, mask=mask))
        if memory is not None:
            cross = self._attention("cross")
            x = self._add(x, "norm_cross", lambda y: cross(y, memory, mask=memory_mask))
        inner = nn.Dense(self.mlp_dim, dtype=self.dtype, name="inner")
        outer = nn.Dense(x.shape[-1], dtype=self.dtype, name="outer")
        return self._add(x, "norm2", lambda y: outer(nn.relu(inner(y))))

    def _attention(self, name: str) -> nn.MultiHeadDotProductAttention:
        return nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name=name)

    def _add(self, x: jax.Array, name: str, part: Callable[[jax.Array], jax.Array]) -> jax.Array:
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
        return x + part(norm(x)) if self.pre_norm else norm(x + part(x))


class Side(nn.Module):
    """The encoder or the decoder."""

    num_layers: int  # number of layers
    num_heads: int  # of each attention
    mlp_dim: int  # hidden units of the feed-forward network
    pre_norm: bool  # normalize before each sublayer, and the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, *inputs: jax.Array) -> jax.Array:
        """(batch, time, width) to the same; the other inputs are those of the layers."""
        for i in range(self.num_layers):
            layer = Layer(
                self.num_heads, self.mlp_dim, self.pre_norm, self.dtype, name=f"block_{i}"
            )
            x = layer(x, *inputs)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x) if self.pre_norm else x


class EncoderDecoder(nn.Module):
    """One embedding for both sides and the logits; source, tokens to logits (..., vocabulary)."""

    vocab_size: int  # shared by source and target
    num_layers: int  # of each side
    num_heads: int  # of each attention
    embed_dim: int  # size of token embeddings and of each position's state
    mlp_dim: int  # hidden units of the feed-forward network
    pre_norm: bool  # normalize before each sublayer, not after it
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, source: jax.Array, tokens: jax.Array) -> jax.Array:
        """Applies the layers; source (batch, keys), tokens (batch, time)."""
        embed = nn.Embed(self.vocab_size, self.embed_dim, dtype=self.dtype, name="embedding")
        shape = (self.num_layers, self.num_heads, self.mlp_dim, self.pre_norm, self.dtype)
        x, y = (
            embed(ids) * self.embed_dim**0.5
            + sinusoids(ids.shape[1], self.embed_dim).astype(self.dtype)
            for ids in (source, tokens)
        )
        seen, causal = (source != 0)[:, None, None], nn.make_causal_mask(tokens[:1], dtype=bool)
        memory = Side(*shape, name="encoder")(x, seen)
        return embed.attend(Side(*shape, name="decoder")(y, causal, memory, seen))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Interleaved sines and cosines, (length, width)."""
    angles = np.arange(length)[:, None] * 10_000 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width)
