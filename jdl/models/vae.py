"""Variational autoencoder."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import exact_gelu
from jdl.models.mlp import MLP


class VAE(nn.Module):
    """Variational autoencoder of dense layers (Kingma and Welling, 2014, appendix C).

    `encode` maps arrays (batch, ...) to mean and log variance of a Gaussian over latent vectors,
    `decode` latent vectors to logits (batch, features), one for each element of an array.
    """

    widths: tuple[int, ...] = (
        512,
        512,
    )  # hidden units of the encoder; reversed, of the decoder
    latent_dim: int = 32  # size of a latent vector
    features: int = 784  # elements of an array
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the hidden units
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Makes encoder and decoder."""
        kinds: Any = {"activation": self.activation, "dtype": self.dtype}
        self.encoder = MLP(self.widths, 2 * self.latent_dim, **kinds)
        self.decoder = MLP(self.widths[::-1], self.features, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of the mean latent vector, (batch, features) float32."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log variance, each (batch, latent) float32."""
        mean, log_variance = jnp.split(self.encoder(x), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: jax.Array) -> jax.Array:
        """Returns logits (batch, features) float32."""
        return self.decoder(z)
