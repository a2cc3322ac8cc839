"""Plain convolutional networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import BatchNorm


class CNN(nn.Module):
    """Blocks of 3x3 convolution, optional batch norm, relu and 2x2 max-pool; then dense layers.

    Takes (batch, height, width, channels) and gives (batch, outputs) float32.
    """

    channels: tuple[int, ...] = (32, 64)  # of each convolution
    dense: tuple[int, ...] = (128,)  # units of each hidden dense layer
    outputs: int = 10  # units of the last layer
    padding: str = "SAME"  # of the convolutions: SAME or VALID
    batch_norm: bool = False  # normalise before each activation
    dropout: float = 0.0  # share of the last hidden layer dropped in training
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layers."""
        for channels in self.channels:
            x = nn.Conv(
                channels,
                (3, 3),
                padding=self.padding,
                use_bias=not self.batch_norm,  # the norm subtracts it again
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
            )(x)
            if self.batch_norm:
                x = BatchNorm(dtype=self.dtype)(x, train)
            x = nn.relu(ops.max_pool(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
