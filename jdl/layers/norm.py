"""Normalization layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.tracing import bound_axis


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last (Ioffe and Szegedy, 2015).

    Uses the statistics of the global batch under every strategy: `jit` sees the whole batch, and
    `pmap` averages them over the devices. They are computed in float32.
    """

    momentum: float = 0.9  # decay of the running statistics
    epsilon: float = 1e-5  # added to the variance
    dtype: Any = jnp.float32  # of the result; statistics are float32
    scale_init: Any = nn.initializers.ones  # of the scale
    use_scale: bool = True  # scale the result by a parameter

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalizes `x` (batch, ..., features)."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            use_scale=self.use_scale,
            scale_init=self.scale_init,
            axis_name=bound_axis(),
        )(x)
