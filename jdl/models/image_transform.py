"""Networks from images to images of the same size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops


class ImageTransformNet(nn.Module):
    """Image transformation network of fast style transfer (Johnson et al., 2016).

    A 9x9 convolution, halvings by convolutions of stride 2, residual blocks, nearest-neighbor
    upsampling with 3x3 convolutions (Odena et al., 2016), and a 9x9 convolution; with instance norm
    (Ulyanov et al., 2016) and reflected edges. Maps images (batch, height, width, channels) of any
    size to images from 0 to 1 of the same shape, float32.
    """

    channels: tuple[int, ...] = (32, 64, 128)  # at full size, and after each halving
    num_blocks: int = 5  # residual blocks of two 3x3 convolutions, at the smallest size
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the model."""
        height, width, colors = image.shape[1:]
        block = 2 ** (len(self.channels) - 1)
        pads = ((0, 0), (0, -height % block), (0, -width % block), (0, 0))
        x = jnp.pad(image, pads, "edge").astype(self.dtype)
        x = self._convolve(x, self.channels[0], 9)
        for channels in self.channels[1:]:
            x = self._convolve(x, channels, 3, strides=2)
        for _ in range(self.num_blocks):
            y = self._convolve(x, self.channels[-1], 3)
            x = x + self._convolve(y, self.channels[-1], 3, activate=False)
        for channels in self.channels[-2::-1]:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = self._convolve(x, channels, 3)
        x = self._plain(x, colors, 9, name="colors")
        return nn.sigmoid(x[:, :height, :width].astype(jnp.float32))

    def _convolve(
        self, x: jax.Array, channels: int, size: int, strides: int = 1, activate: bool = True
    ) -> jax.Array:
        x = self._plain(x, channels, size, strides=strides, use_bias=False)
        x = nn.InstanceNorm(dtype=self.dtype)(x)
        return nn.relu(x) if activate else x

    def _plain(self, x: jax.Array, channels: int, size: int, **fields: Any) -> jax.Array:
        return nn.Conv(
            channels,
            (size, size),
            padding="VALID",
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            **fields,
        )(jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)), "reflect"))
