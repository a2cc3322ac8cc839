"""ENet."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import BatchNorm
from jdl.models.unet import upsample

SECTION = ((1, 3), (2, 3), (1, 5), (4, 3), (1, 3), (8, 3), (1, 5), (16, 3))
"""Dilation and size of the bottlenecks of stages 2 and 3; those of size 5 are 5x1 and 1x5."""


class ENet(nn.Module):
    """ENet (Paszke et al., 2016): a fast network for segmentation.

    Narrow bottlenecks, most of them at an eighth of the resolution, where some dilate their
    convolutions and others factor them. In place of the paper's unpooling by stored positions the
    decoder repeats pixels, its last transposed convolution is a convolution, and there is no
    dropout. Maps images
    (batch, height, width, channels) to (batch, height / 2, width / 2, features) float32, sides
    rounded up.
    """

    channels: tuple[int, int, int] = (16, 64, 128)  # at a half, a quarter, an eighth
    sections: int = 2  # runs of the eight bottlenecks at an eighth of the resolution
    features: int = 12  # outputs of each block of 2x2 pixels, such as one per class
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        half, quarter, eighth = self.channels
        x = x.astype(self.dtype)
        pooled = ops.max_pool(x, (2, 2), (2, 2), "SAME")
        x = _conv(half - x.shape[-1], 3, 2, dtype=self.dtype, name="initial")(x)
        x = _activate(jnp.concatenate([x, pooled], -1), train, self.dtype, "initial")
        skips = [x]
        x = Bottleneck(quarter, down=True, dtype=self.dtype)(x, train)
        for _ in range(4):
            x = Bottleneck(quarter, dtype=self.dtype)(x, train)
        skips.append(x)
        x = Bottleneck(eighth, down=True, dtype=self.dtype)(x, train)
        for dilation, size in SECTION * self.sections:
            x = Bottleneck(eighth, dilation, size, dtype=self.dtype)(x, train)
        for skip, channels, blocks in ((skips[1], quarter, 2), (skips[0], half, 1)):
            x = upsample(_conv(channels, 1, dtype=self.dtype)(x), skip)
            for _ in range(blocks + 1):
                x = Bottleneck(channels, dtype=self.dtype)(x, train)
        logits = _conv(self.features, 3, use_bias=True, dtype=self.dtype, name="logits")
        return logits(x).astype(jnp.float32)


class Bottleneck(nn.Module):
    """1x1, a convolution of a quarter of the channels, 1x1, added to the input (figure 2b)."""

    channels: int  # of the result
    dilation: int = 1  # of the inner convolution
    size: int = 3  # of its kernel; 5: two factors, 5x1 and 1x5
    down: bool = False  # halve height and width
    dtype: Any = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels)."""
        inner = max(1, self.channels // 4)
        first = _conv(inner, 2 if self.down else 1, 2 if self.down else 1, dtype=self.dtype)
        y = _activate(first(x), train, self.dtype)
        for kernel in ((5, 1), (1, 5)) if self.size == 5 else (self.size,):
            y = _conv(inner, kernel, dilation=self.dilation, dtype=self.dtype)(y)
        y = _activate(y, train, self.dtype)
        y = BatchNorm(dtype=self.dtype)(_conv(self.channels, 1, dtype=self.dtype)(y), train)
        if self.down:
            x = ops.max_pool(x, (2, 2), (2, 2), "SAME")
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1])))
        return nn.PReLU()(x + y)


def _conv(
    channels: int,
    size: int | tuple[int, int],
    strides: int = 1,
    dilation: int = 1,
    use_bias: bool = False,  # batch norm follows, but after the last
    **options: Any,
) -> nn.Conv:
    return nn.Conv(
        channels,
        (size, size) if isinstance(size, int) else size,
        strides,
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=ops.conv_general_dilated,
        **options,
    )


def _activate(x: jax.Array, train: bool, dtype: Any, name: str | None = None) -> jax.Array:
    """Batch norm and PReLU."""
    norm = None if name is None else f"{name}_norm"
    return nn.PReLU()(BatchNorm(dtype=dtype, name=norm)(x, train))
