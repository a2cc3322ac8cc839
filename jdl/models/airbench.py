"""The network of the records for 94 % on CIFAR-10 (Jordan, 2024, arXiv:2404.00498)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import BatchNorm, Whitening, partial_identity


class Airbench(nn.Module):
    """A whitening convolution, groups of two 3x3 convolutions, max-pooling, and a dense layer.

    Maps images (batch, height, width, channels) to logits (batch, num_classes) float32. Each group
    halves height and width after its first convolution; the last pooling takes the maximum of all
    pixels. Batch norm has no scale, and convolutions start as partial identities. With the default
    channels and images of 32x32 this is airbench94: 1,971,352 trained parameters and 288 frozen.
    """

    channels: tuple[int, ...] = (64, 256, 256)  # of the convolutions in each group
    num_classes: int = 10  # logits of the last layer
    whitening_size: int = 2  # of the sides of the first convolution's patches
    momentum: float = 0.6  # decay of the running statistics of batch norm
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # after each batch norm
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        x = self.activation(Whitening(self.whitening_size, dtype=self.dtype, name="whiten")(x))
        for group, channels in enumerate(self.channels):
            x = self._convolve(x, channels, f"group{group}_conv0")
            x = ops.max_pool(x, (2, 2), (2, 2))
            x = self.activation(self._normalize(x, f"group{group}_norm0", train))
            x = self._convolve(x, channels, f"group{group}_conv1")
            x = self.activation(self._normalize(x, f"group{group}_norm1", train))
        x = x.max((1, 2))
        # Uniform with deviation 1: dividing the logits by the width keeps them small at first.
        wide = nn.initializers.variance_scaling(x.shape[-1], "fan_in", "uniform")
        logits = nn.Dense(
            self.num_classes, use_bias=False, kernel_init=wide, dtype=self.dtype, name="logits"
        )
        return logits(x).astype(jnp.float32) / x.shape[-1]

    def _convolve(self, x: jax.Array, channels: int, name: str) -> jax.Array:
        convolution = nn.Conv(
            channels,
            (3, 3),
            use_bias=False,
            kernel_init=partial_identity(),
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=name,
        )
        return convolution(x)

    def _normalize(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        norm = BatchNorm(self.momentum, 1e-12, self.dtype, use_scale=False, name=name)
        return norm(x, train)
