"""U-Net whose output depends on a time and a condition: a model of diffusion."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import Attention, ConditionEmbedding, Dropout
from jdl.models.unet import depth_to_space, space_to_depth


class ConditionalUNet(nn.Module):
    """U-Net of residual blocks for diffusion (Ho et al., 2020; Dhariwal and Nichol, 2021).

    Each block has two 3x3 convolutions after group norm and silu; an embedding of time and
    condition scales and shifts between them. Average pooling on the way down, nearest-neighbor
    upsampling on the way up, and self-attention on the coarsest level. Maps images (batch, height,
    width, channels) to the same shape, float32; at first to zeros.
    """

    channels: tuple[int, ...] = (64, 128)  # of each level, from the finest
    num_blocks: int = 1  # residual blocks on each level, on the way down and up
    stride: int = 1  # the pixels of each stride x stride block become channels of the finest level
    num_heads: int = 4  # of the attention; 0: none
    embed_dim: int = 128  # size of the embedding of time and condition
    dropout_rate: float = 0.0  # in each block
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        condition: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Applies the model.

        Args:
          x: (batch, height, width, channels).
          time: (batch,) float32, from 0 to 1.
          condition: (batch, features), such as a one-hot class; None: none.
          train: whether dropout is active.
        """
        least = self.stride * 2 ** (len(self.channels) - 1)
        if x.shape[1] % least or x.shape[2] % least:
            raise UserError(
                f"ConditionalUNet of {len(self.channels)} levels and stride {self.stride} needs "
                f"sides that are multiples of {least}, not {x.shape[1]}x{x.shape[2]}: resize or "
                f"pad the images"
            )
        pixels = x.shape[-1]
        embedding = ConditionEmbedding(self.embed_dim, dtype=self.dtype)(time, condition)
        x = space_to_depth(x, self.stride).astype(self.dtype)
        x = _convolution(self.channels[0], self.dtype)(x)
        skips = [x]
        for level, channels in enumerate(self.channels):
            if level:
                x = _halve(x)
                skips.append(x)
            for _ in range(self.num_blocks):
                x = self._block(channels)(x, embedding, train)
                skips.append(x)
        if self.num_heads:
            x = self._attend(x)
        x = self._block(self.channels[-1])(x, embedding, train)
        for level, channels in reversed(list(enumerate(self.channels))):
            for _ in range(self.num_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = self._block(channels)(x, embedding, train)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = nn.silu(_group_norm(x.shape[-1], self.dtype)(x))
        x = _convolution(self.stride**2 * pixels, self.dtype, zero=True, name="output")(x)
        return depth_to_space(x.astype(jnp.float32), self.stride)

    def _block(self, channels: int) -> "_Block":
        return _Block(channels, self.dropout_rate, self.dtype)

    def _attend(self, x: jax.Array) -> jax.Array:
        y = _group_norm(x.shape[-1], self.dtype)(x).reshape(x.shape[0], -1, x.shape[-1])
        return x + Attention(self.num_heads, dtype=self.dtype)(y).reshape(x.shape)


class _Block(nn.Module):
    """A residual block that an embedding scales and shifts."""

    channels: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        y = nn.silu(_group_norm(x.shape[-1], self.dtype)(x))
        y = _convolution(self.channels, self.dtype)(y)
        film = nn.Dense(2 * self.channels, dtype=self.dtype)(nn.silu(embedding))
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        y = nn.silu(_group_norm(self.channels, self.dtype)(y) * (1 + scale) + shift)
        y = Dropout(self.dropout_rate, deterministic=not train)(y)
        y = _convolution(self.channels, self.dtype, zero=True)(y)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, dot_general=ops.dot_general)(x)
        return x + y


def _halve(x: jax.Array) -> jax.Array:
    """Returns means of 2x2 pixels; the gradient of `nn.avg_pool` is slower."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _convolution(
    channels: int, dtype: Any, zero: bool = False, name: str | None = None
) -> nn.Module:
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        channels, (3, 3), dtype=dtype, kernel_init=init,
        conv_general_dilated=ops.conv_general_dilated, name=name,
    )  # fmt: skip


def _group_norm(channels: int, dtype: Any) -> nn.Module:
    size = 8 if channels % 8 == 0 else channels
    return nn.GroupNorm(num_groups=None, group_size=size, dtype=dtype)
