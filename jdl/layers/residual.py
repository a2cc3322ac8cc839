"""Building blocks of residual networks (He et al., 2016)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers.norm import BatchNorm


class Residual(nn.Module):
    """A residual block, plain or bottleneck (He et al., 2016, figures 2 and 5)."""

    channels: int  # of the inner convolutions; a bottleneck outputs four times as many
    strides: int = 1  # along height and width
    bottleneck: bool = True  # 1x1, 3x3, 1x1; else 3x3, 3x3
    shortcut: Literal["projection", "padding"] = "projection"  # the paper's options B and A
    dtype: Any = jnp.float32  # of the computation
    dilation: int = 1  # of the 3x3 convolutions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(batch, height, width, channels), height and width divided by `strides`."""
        outputs = self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            sizes = ((self.channels, 1, 1), (self.channels, 3, self.strides), (outputs, 1, 1))
        else:
            sizes = ((self.channels, 3, self.strides), (outputs, 3, 1))
        y = x
        for index, (channels, size, strides) in enumerate(sizes):
            if index:
                y = nn.relu(y)
            last = index == len(sizes) - 1
            convolution = NormedConv(
                channels,
                size,
                strides,
                self.dtype,
                zero=last,
                dilation=self.dilation,
                name=f"conv{index}",
            )
            y = convolution(y, train)
        if x.shape != y.shape and self.shortcut == "projection":
            x = NormedConv(outputs, 1, self.strides, self.dtype, name="project")(x, train)
        elif x.shape != y.shape:
            x = x[:, :: self.strides, :: self.strides]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, outputs - x.shape[-1])))
        return nn.relu(x + y)


class NormedConv(nn.Module):
    """A square convolution without bias, and batch norm."""

    channels: int  # of the output
    size: int  # of the kernel's sides
    strides: int = 1  # along height and width
    dtype: Any = jnp.float32  # of the computation
    zero: bool = False  # initialize the scale with 0: a block starts as its shortcut (Goyal, 2017)
    dilation: int = 1  # pixels from one of the kernel's to the next

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels)."""
        pad = self.size // 2 * self.dilation
        convolution = nn.Conv(
            self.channels,
            (self.size, self.size),
            self.strides,
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=self.dilation,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),  # He, 2015
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
        )
        begin = nn.initializers.zeros if self.zero else nn.initializers.ones
        return BatchNorm(dtype=self.dtype, scale_init=begin)(convolution(x), train)
