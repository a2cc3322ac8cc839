"""U-Net."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import BatchNorm


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015): one output vector for each pixel, or block of pixels.

    Two 3x3 convolutions with normalization and relu on each level, 2x2 max-pool on the way down,
    nearest-neighbor upsampling and the level's own activations on the way up. Maps images (batch,
    height, width, channels) to (batch, height / stride, width / stride, features) float32. Where a
    level has an odd side, the next has half of it, rounded up.
    """

    channels: tuple[int, ...] = (16, 32, 64)  # of each level, from the finest
    features: int = 2  # outputs of each pixel, such as one per class
    stride: int = 1  # of the outputs; the pixels of each stride x stride block become channels
    norm: Literal["group", "batch"] = "group"  # groups of 8 channels (Wu and He, 2018), or batches
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        x = space_to_depth(x, self.stride).astype(self.dtype)
        skips = []
        for level, channels in enumerate(self.channels):
            if level:
                skips.append(x)
                x = ops.max_pool(x, (2, 2), (2, 2), "SAME")
            x = self._block(x, channels, train)
        for channels in self.channels[-2::-1]:
            skip = skips.pop()
            x = self._block(jnp.concatenate([upsample(x, skip), skip], -1), channels, train)
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def _block(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(
                channels,
                (3, 3),
                use_bias=False,  # the norm subtracts it again, or has its own
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
            )(x)
            if self.norm == "batch":
                x = BatchNorm(dtype=self.dtype)(x, train)
            else:
                size = 8 if channels % 8 == 0 else channels
                x = nn.GroupNorm(num_groups=None, group_size=size, dtype=self.dtype)(x)
            x = nn.relu(x)
        return x


def upsample(x: jax.Array, like: jax.Array) -> jax.Array:
    """Doubles height and width to those of `like`, which may be odd; nearest neighbor."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : like.shape[1], : like.shape[2]]


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Moves blocks of pixels to channels: (batch, h, w, c) to (batch, h / b, w / b, b * b * c).

    Raises:
      UserError: height or width is no multiple of the block.
    """
    batch, height, width, channels = x.shape
    if height % block or width % block:
        raise UserError(
            f"a stride of {block} needs images whose sides are multiples of it, not "
            f"{height}x{width}: resize or crop them"
        )
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // block, width // block, block * block * channels)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """Inverts `space_to_depth`: (batch, h, w, b * b * c) to (batch, h * b, w * b, c)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, -1)
