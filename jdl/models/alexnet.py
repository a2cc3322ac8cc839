"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Dropout


class AlexNet(nn.Module):
    """Five convolutions, three of them in two groups, and three dense layers.

    Maps images (batch, 227, 227, 3) to logits (batch, num_classes) float32; 60,965,224 parameters.
    The groups are those that the paper placed on two GPUs (section 3.2).
    """

    num_classes: int = 1000  # logits of the last layer
    dropout_rate: float = 0.5  # after each hidden dense layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        x = local_response_norm(self._convolve(x, 96, 11, strides=4, padding="VALID"))
        x = ops.max_pool(x, (3, 3), (2, 2))
        x = local_response_norm(self._convolve(x, 256, 5, groups=2))
        x = ops.max_pool(x, (3, 3), (2, 2))
        x = self._convolve(x, 384, 3)
        x = self._convolve(x, 384, 3, groups=2)
        x = self._convolve(x, 256, 3, groups=2)
        x = ops.max_pool(x, (3, 3), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096, dtype=self.dtype)(x))
            x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def _convolve(
        self,
        x: jax.Array,
        channels: int,
        size: int,
        strides: int = 1,
        padding: str = "SAME",
        groups: int = 1,
    ) -> jax.Array:
        convolution = nn.Conv(
            channels,
            (size, size),
            strides,
            padding=padding,
            feature_group_count=groups,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
        )
        return nn.relu(convolution(x))


def local_response_norm(
    x: jax.Array, size: int = 5, bias: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides each channel by a power of the squares of its neighbors (section 3.3 of the paper).

    Args:
      x: (..., channels).
      size: width of the window of channels, centered on each.
      bias: the paper's k, added to the scaled sum of squares.
      alpha: factor of the sum of squares.
      beta: exponent of the divisor.

    Returns:
      The same shape and dtype.
    """
    squares = jnp.square(x.astype(jnp.float32))
    pads = [(0, 0)] * (x.ndim - 1) + [(size // 2, size - 1 - size // 2)]
    padded, channels = jnp.pad(squares, pads), x.shape[-1]
    total = sum((padded[..., i : i + channels] for i in range(1, size)), padded[..., :channels])
    return (x * (bias + alpha * total) ** -beta).astype(x.dtype)
