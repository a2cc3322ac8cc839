"""Diffusion transformer: an image as a sequence of patches, at a time and under a condition."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import (
    Attention,
    ConditionEmbedding,
    FeedForward,
    check_sizes,
)
from jdl.models.unet import depth_to_space, space_to_depth


class DiT(nn.Module):
    """Transformer of diffusion with adaptive layer norm, adaLN-Zero (Peebles and Xie, 2023).

    In each block an embedding of time and condition scales and shifts what attention and
    feed-forward network read, and gates what they add, at first by zero. Maps images (batch,
    height, width, channels) to the same shape, float32; at first to zeros.
    """

    patch_size: int = 4  # side of a patch in pixels
    num_layers: int = 6  # blocks
    num_heads: int = 4  # heads of each attention
    embed_dim: int = 192  # size of each position's state, and of the condition's embedding
    mlp_dim: int | None = None  # hidden units of the feed-forward networks; None: 4 * embed_dim
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the model.

        Args:
          x: (batch, height, width, channels).
          time: (batch,) float32, from 0 to 1.
          condition: (batch, features), such as a one-hot class; None: none.
        """
        check_sizes(self)
        batch, height, width, channels = x.shape
        side = self.patch_size
        if height % side or width % side:
            raise UserError(
                f"images of {height}x{width} pixels cannot be cut into patches of {side}: set "
                f"model.patch_size"
            )
        embedding = ConditionEmbedding(self.embed_dim, dtype=self.dtype)(time, condition)
        embedding = nn.silu(embedding)
        x = space_to_depth(x, side).astype(self.dtype)
        grid = x.shape[1:3]
        x = nn.Dense(self.embed_dim, dtype=self.dtype, dot_general=ops.dot_general, name="patches")(
            x.reshape(batch, -1, x.shape[-1])
        )
        init = nn.initializers.normal(0.02)
        x = x + self.param("positions", init, (x.shape[1], self.embed_dim)).astype(self.dtype)
        for index in range(self.num_layers):
            mlp_dim = self.mlp_dim or 4 * self.embed_dim
            block = _Block(self.num_heads, mlp_dim, self.dtype, name=f"block_{index}")
            x = block(x, embedding)
        shift, scale = _Modulation(2, self.embed_dim, self.dtype, name="final")(embedding)
        x = _norm(self.dtype, "norm")(x) * (1 + scale) + shift
        x = nn.Dense(
            side**2 * channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="output"
        )(x)
        return depth_to_space(x.reshape(batch, *grid, -1).astype(jnp.float32), side)


class _Block(nn.Module):
    """Attention and a feed-forward network, each scaled, shifted and gated by an embedding."""

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        width = x.shape[-1]
        parts = _Modulation(6, width, self.dtype, name="modulation")(embedding)
        shift, scale, gate = parts[:3]
        y = _norm(self.dtype, "norm1")(x) * (1 + scale) + shift
        x = x + gate * Attention(self.num_heads, dtype=self.dtype, name="attention")(y)
        shift, scale, gate = parts[3:]
        y = _norm(self.dtype, "norm2")(x) * (1 + scale) + shift
        return x + gate * FeedForward(self.mlp_dim, dtype=self.dtype, name="feed_forward")(y)


class _Modulation(nn.Module):
    """Vectors that scale, shift or gate all positions, of an embedding; at first zeros."""

    count: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, embedding: jax.Array) -> list[jax.Array]:
        dense = nn.Dense(
            self.count * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype
        )
        return jnp.split(dense(embedding)[:, None], self.count, axis=-1)


def _norm(dtype: Any, name: str) -> nn.Module:
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype, name=name)
