"""Multilayer perceptrons."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import Dropout


class MLP(nn.Module):
    """Flatten, then dense layers with an activation between them.

    Maps (batch, ...) to (batch, features) float32.
    """

    widths: tuple[int, ...] = (128,)  # units of each hidden layer
    features: int = 10  # outputs of the last layer: classes, or values to regress
    activation: Callable[[jax.Array], jax.Array] = nn.relu  # between the layers
    dropout_rate: float = 0.0  # after each hidden layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    kernel_init: Any = nn.initializers.glorot_uniform()  # Glorot and Bengio, 2010

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(x)
            x = self.activation(x)
            x = Dropout(self.dropout_rate, deterministic=not train)(x)
        last = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="logits"
        )
        return last(x).astype(jnp.float32)
