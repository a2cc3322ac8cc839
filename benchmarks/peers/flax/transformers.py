"""Transformers, as in Flax's examples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """A pre-norm block: attention and an MLP."""

    num_heads: int  # of the attention
    dtype: Any  # of the computation
    epsilon: float = 1e-5  # of the norms
    approximate: bool = True  # the GELU by a hyperbolic tangent

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, name="attention"
        )
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="inner")(y), self.approximate)
        return x + nn.Dense(width, dtype=self.dtype, name="outer")(y)


class GPT(nn.Module):
    """A decoder with tied embeddings; tokens (batch, time) to logits (..., vocabulary)."""

    vocab_size: int  # shared by source and target
    max_position_embeddings: int  # longest sequence
    num_layers: int  # blocks
    num_heads: int  # of each attention
    embed_dim: int  # of the sequence
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        embed = nn.Embed(self.vocab_size, self.embed_dim, dtype=self.dtype, name="tokens")
        init = nn.initializers.normal(0.02)
        positions = self.param("positions", init, (self.max_position_embeddings, self.embed_dim))
        x = embed(tokens) + positions[: tokens.shape[1]].astype(self.dtype)
        mask = nn.make_causal_mask(tokens[:1], dtype=bool)
        for i in range(self.num_layers):
            x = Block(self.num_heads, self.dtype, name=f"block_{i}")(x, mask)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x))


class ViT(nn.Module):
    """A vision transformer with mean pooling; uint8 images to logits."""

    patch_size: int  # side of a patch
    num_layers: int  # blocks
    num_heads: int  # of each attention
    embed_dim: int  # of the sequence
    num_classes: int  # size of the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x, sides = image.astype(jnp.float32) / 255, (self.patch_size, self.patch_size)
        x = nn.Conv(self.embed_dim, sides, sides, dtype=self.dtype, name="patches")(x)
        x = x.reshape(len(x), -1, self.embed_dim)
        init = nn.initializers.normal(0.02)
        x = x + self.param("positions", init, x.shape[1:]).astype(self.dtype)
        for i in range(self.num_layers):
            x = Block(self.num_heads, self.dtype, 1e-6, False, name=f"block_{i}")(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x).mean(1)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)


class EncoderBlock(nn.Module):
    """A post-norm block: attention and an MLP."""

    num_heads: int  # of the attention
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, name="attention"
        )
        y = attention(x, mask=mask)
        x = nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm1")(x + y)
        y = nn.Dense(4 * width, dtype=self.dtype, name="inner")(x)
        y = nn.Dense(width, dtype=self.dtype, name="outer")(nn.gelu(y, approximate=False))
        return nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm2")(x + y)


class BERT(nn.Module):
    """A post-norm encoder; tokens (batch, time) to logits from the first position or the mean."""

    vocab_size: int  # shared by source and target
    max_position_embeddings: int  # longest sequence
    num_layers: int  # blocks
    num_heads: int  # of each attention
    embed_dim: int  # of the sequence
    num_classes: int  # size of the output
    pool: str  # first or mean
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        init = nn.initializers.normal(0.02)
        positions = self.param("positions", init, (self.max_position_embeddings, self.embed_dim))
        kinds = self.param("kinds", init, (2, self.embed_dim))
        x = nn.Embed(self.vocab_size, self.embed_dim, dtype=self.dtype, name="tokens")(tokens)
        x = x + (positions[: tokens.shape[1]] + kinds[0]).astype(self.dtype)
        x = nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm")(x)
        for i in range(self.num_layers):
            block = EncoderBlock(self.num_heads, self.dtype, name=f"block_{i}")
            x = block(x, (tokens != 0)[:, None, None])
        if self.pool == "mean":
            seen = (tokens != 0)[..., None]
            pooled = (x * seen).sum(1) / seen.sum(1).astype(self.dtype)
        else:
            pooled = nn.tanh(nn.Dense(self.embed_dim, dtype=self.dtype, name="pooler")(x[:, 0]))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(pooled)
