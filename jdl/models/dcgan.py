"""DCGAN: a generator and a critic of images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import BatchNorm
from jdl.typing import Keys

SLOPE = 0.2
"""Of the critic's leaky relu below 0 (Radford et al., 2016, section 3)."""


class DCGAN(nn.Module):
    """The two networks of a GAN of images (Radford et al., 2016), for the task `GAN`.

    The generator doubles the side by repeating pixels before a 3x3 convolution, which leaves no
    checkerboard (Odena et al., 2016), and normalizes batches; the critic halves it by 3x3
    convolutions and does not. With classes, their embedding scales the generator's noise, and the
    critic adds the product of its features with that of the class (Miyato and Koyama, 2018).
    """

    shape: tuple[int, int, int] = (28, 28, 1)  # height, width and channels of an image
    latent_dim: int = 64  # of the noise
    generator_channels: tuple[int, ...] = (64, 64, 32)  # of each level, from the coarsest
    critic_channels: tuple[int, ...] = (32, 64)  # of each convolution
    num_classes: int = 0  # of a class-conditional GAN; 0: no classes
    spectral_norm: bool = False  # of the critic's kernels (Miyato et al., 2018)
    momentum: float = 0.99  # decay of the running statistics; suits averaged weights if like theirs
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Makes the players."""
        self.generator = Generator(
            self.shape, self.generator_channels, self.num_classes, self.momentum, self.dtype
        )
        self.critic = Critic(self.critic_channels, self.num_classes, self.spectral_norm, self.dtype)

    def generate(
        self, keys: Keys, label: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Generates an image for each key.

        Args:
          keys: (batch,), of the noise.
          label: (batch,) classes; needed with `num_classes`.
          train: whether the generator normalizes by the batch's own statistics.

        Returns:
          (batch, *shape) float32 in [0, 1].
        """
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.latent_dim,)))(keys)
        return self.generator(noise, self._label(label), train)

    def judge(
        self, image: jax.Array, label: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns the critic's score of each image, higher for real ones, (batch,) float32.

        Args:
          image: (batch, *shape).
          label: (batch,) classes; needed with `num_classes`.
          train: whether spectral norm takes a power iteration.
        """
        return self.critic(image, self._label(label), train)

    def _label(self, label: jax.Array | None) -> jax.Array | None:
        if (label is not None) != (self.num_classes > 0):
            raise UserError(
                f"DCGAN with model.num_classes={self.num_classes} "
                f"{'needs labels' if label is None else 'takes no labels'}: set task.num_classes "
                f"to the same number"
            )
        return label


class Generator(nn.Module):
    """See `DCGAN`."""

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    num_classes: int
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, noise: jax.Array, label: jax.Array | None, train: bool) -> jax.Array:
        """Maps noise (batch, latent_dim) to images (batch, height, width, channels) in [0, 1]."""
        *sides, features = self.shape
        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in sides):
            raise UserError(
                f"model.generator_channels has {len(self.channels)} levels, for which sides must "
                f"be multiples of {factor}, not {sides[0]}x{sides[1]}: give fewer, or resize the "
                f"images"
            )
        if label is not None:
            noise *= nn.Embed(self.num_classes, noise.shape[1], embedding_init=_around_one)(label)
        height, width = (side // factor for side in sides)
        x = nn.Dense(height * width * self.channels[0], use_bias=False, dtype=self.dtype)(noise)
        x = x.reshape(-1, height, width, self.channels[0])
        x = nn.relu(BatchNorm(self.momentum, dtype=self.dtype)(x, train))
        for channels in self.channels[1:]:
            x = _double(x)
            x = _conv(channels, 1, self.dtype, use_bias=False)(x)
            x = nn.relu(BatchNorm(self.momentum, dtype=self.dtype)(x, train))
        return nn.sigmoid(_conv(features, 1, self.dtype)(x).astype(jnp.float32))


class Critic(nn.Module):
    """See `DCGAN`."""

    channels: tuple[int, ...]
    num_classes: int
    spectral_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, label: jax.Array | None, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to scores (batch,)."""

        def apply(layer: nn.Module, x: jax.Array) -> jax.Array:
            if self.spectral_norm:
                return nn.SpectralNorm(layer)(x, update_stats=train)
            return layer(x)

        x = image.astype(self.dtype)
        for channels in self.channels:
            x = nn.leaky_relu(apply(_conv(channels, 2, self.dtype), x), SLOPE)
        x = x.reshape(len(x), -1)
        score = apply(nn.Dense(1, dtype=self.dtype), x)[:, 0]
        if label is not None:
            embed = nn.Embed(self.num_classes, x.shape[1], dtype=self.dtype)
            score += (apply(embed, label) * x).sum(1)
        return score.astype(jnp.float32)


def _double(x: jax.Array) -> jax.Array:
    """Repeats each pixel in a 2x2 block; on CPUs its gradient is 8 times as fast as repeat's."""
    batch, height, width, channels = x.shape
    x = jnp.stack([x, x], axis=3).reshape(batch, height, 2 * width, channels)
    return jnp.stack([x, x], axis=2).reshape(batch, 2 * height, 2 * width, channels)


def _conv(channels: int, stride: int, dtype: Any, use_bias: bool = True) -> nn.Conv:
    return nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        use_bias=use_bias,
        dtype=dtype,
        conv_general_dilated=ops.conv_general_dilated,
    )


def _around_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return 1 + jax.random.normal(key, shape, dtype)
