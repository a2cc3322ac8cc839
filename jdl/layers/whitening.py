"""A convolution that whitens the patches of the training images, and partial identities."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops

Initializer = Callable[..., jax.Array]

FROZEN = "frozen"
"""Collection of arrays that are computed at initialization, from data, and never change."""


class Whitening(nn.Module):
    """A convolution whose filters whiten the image patches of the first batch (Jordan, 2024).

    The filters are the eigenvectors of the patches' second moment, each divided by the square root
    of its eigenvalue, and their negatives: `2 * size^2 * channels` of them. They are computed by
    `init` from the batch that it is given, kept in the collection `frozen`, and not trained. The
    bias is trained. (batch, height, width, channels) becomes
    (batch, height - size + 1, width - size + 1, 2 * size^2 * channels).
    """

    size: int = 2  # of the patches' sides, in pixels
    epsilon: float = 5e-4  # added to the eigenvalues
    dtype: Any = jnp.float32  # of the computation; filters and bias are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the filters without padding."""
        kernel = self.variable(FROZEN, "kernel", whitening_kernel, x, self.size, self.epsilon)
        bias = self.param("bias", nn.initializers.zeros, (kernel.value.shape[-1],))
        y = ops.conv_general_dilated(
            x.astype(self.dtype), kernel.value.astype(self.dtype), (1, 1), "VALID"
        )
        return y + bias.astype(self.dtype)


def whitening_kernel(images: jax.Array, size: int, epsilon: float) -> jax.Array:
    """Returns the filters of `Whitening`, (size, size, channels, 2 * size^2 * channels) float32.

    Args:
      images: (batch, height, width, channels).
      size: of the patches' sides.
      epsilon: added to the eigenvalues.
    """
    x, channels = images.astype(jnp.float32), images.shape[-1]
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * channels)
    # TF32 would lose the small eigenvalues.
    moment = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    values, vectors = jnp.linalg.eigh(moment)
    # Rounding makes eigenvalues that are 0 negative. (size * size * channels, filters)
    filters = vectors / jnp.sqrt(jnp.maximum(values, 0) + epsilon)
    kernel = jnp.concatenate([filters, -filters], axis=1)
    return kernel.reshape(size, size, channels, -1)


def partial_identity(rest: Initializer | None = None) -> Initializer:
    """Returns an initializer of convolutions that pass their input channels on.

    Output channel i is input channel i, by a 1 in the middle of the window, for as many as there
    are; those beyond are initialized by `rest`. A convolution with as many outputs as inputs starts
    as the identity (Zagoruyko and Komodakis, 2017, "DiracNets").

    Args:
      rest: initializes a kernel (rows, columns, inputs, outputs), of which the further outputs are
        kept; None for uniform within 1 / sqrt(fan-in), PyTorch's default.
    """
    rest = rest or nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns, inputs, outputs = shape
        middle = jnp.zeros(shape, dtype).at[rows // 2, columns // 2].set(jnp.eye(inputs, outputs))
        return jnp.where(jnp.arange(outputs) < inputs, middle, rest(key, shape, dtype))

    return initialize
