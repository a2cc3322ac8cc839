"""Plain convolutional networks and VGG."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import BatchNorm, Dropout


class CNN(nn.Module):
    """Blocks of 3x3 convolutions, optional batch norm, relu, and 2x2 pooling; then dense layers.

    Maps images (batch, height, width, channels) to logits (batch, num_classes) float32.
    """

    channels: tuple[int, ...] = (32, 64)  # of the convolutions in each block
    dense: tuple[int, ...] = (128,)  # units of each hidden dense layer
    num_classes: int = 10  # logits of the last layer
    padding: str = "SAME"  # of the convolutions: SAME or VALID
    batch_norm: bool = False  # before each activation
    dropout_rate: float = 0.0  # after each hidden dense layer
    repeats: tuple[int, ...] = ()  # convolutions per block; empty: one each
    pooling: Literal["max", "mean"] = "max"  # of each 2x2 pixels at the end of a block
    global_pooling: bool = False  # dense layers see means over all pixels: images of any size
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        repeats = self.repeats or (1,) * len(self.channels)
        for channels, count in zip(self.channels, repeats, strict=True):
            for _ in range(count - 1):
                x = nn.relu(self._convolve(x, channels, train))
            x = self._pool(self._convolve(x, channels, train))
        x = x.mean((1, 2)) if self.global_pooling else x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
            x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def _convolve(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        convolution = nn.Conv(
            channels,
            (3, 3),
            padding=self.padding,
            use_bias=not self.batch_norm,  # batch norm subtracts it again
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
        )
        x = convolution(x)
        return BatchNorm(dtype=self.dtype)(x, train) if self.batch_norm else x

    def _pool(self, x: jax.Array) -> jax.Array:
        if self.pooling == "mean":
            return nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        # relu and max commute; after the pool relu works on a quarter of the pixels.
        return nn.relu(ops.max_pool(x, (2, 2), (2, 2)))


_VGG = partial(
    CNN, channels=(64, 128, 256, 512, 512), dense=(4096, 4096), num_classes=1000, dropout_rate=0.5
)

VGG11 = partial(_VGG, repeats=(1, 1, 2, 2, 2))
"""Configuration A of Simonyan and Zisserman (2015), for images of 224x224; 132,863,336 parameters.

`batch_norm=True` gives the form with batch norm.
"""

VGG13 = partial(_VGG, repeats=(2, 2, 2, 2, 2))
"""Configuration B, 133,047,848 parameters."""

VGG16 = partial(_VGG, repeats=(2, 2, 3, 3, 3))
"""Configuration D, 138,357,544 parameters."""

VGG19 = partial(_VGG, repeats=(2, 2, 4, 4, 4))
"""Configuration E, 143,667,240 parameters."""
