"""Masked autoencoder: a vision transformer that sees some patches and predicts the others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, check_sizes, cut_patches, exact_gelu, normalization, stack


class MaskedAutoencoder(nn.Module):
    """An encoder of visible patches, and a smaller decoder of all (He et al., 2022).

    The encoder is a `ViT` of the same fields with the pooling `mean`, whose modules have the same
    names: `InitFrom(run, skip=("logits",))` trains a `ViT` from it. Without `visible` it returns
    the features of whole images.
    """

    patch_size: int = 16  # side of a patch in pixels
    num_layers: int = 12  # blocks of the encoder
    num_heads: int = 6  # heads of each of its attentions
    embed_dim: int = 384  # size of its embeddings
    mlp_dim: int | None = None  # hidden units of its feed-forward networks; None: 4 * embed_dim
    decoder_layers: int = 4  # blocks of the decoder
    decoder_heads: int = 6  # heads of each of its attentions
    decoder_dim: int = 192  # size of its embeddings
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the feed-forward networks
    epsilon: float = 1e-6  # of the normalization layers
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self, images: jax.Array, visible: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Applies the model.

        Args:
          images: (batch, height, width, channels), sides divisible by `patch_size`.
          visible: (batch, visible) int, indices of the patches that are seen; None: all.
          train: without effect, as there is no dropout.

        Returns:
          Predicted patches (batch, patches, pixels) float32 as of `jdl.layers.cut_patches`, or of
          whole images mean features (batch, embed) float32.
        """
        check_sizes(self)
        patches = cut_patches(images, self.patch_size)
        x = nn.Dense(self.embed_dim, dtype=self.dtype, dot_general=ops.dot_general, name="patches")(
            patches.astype(self.dtype)
        )
        init = nn.initializers.normal(0.02)
        x = x + self.param("positions", init, (x.shape[1], self.embed_dim)).astype(self.dtype)
        if visible is not None:
            x = jnp.take_along_axis(x, visible[..., None], axis=1)
        block = partial(
            Block, num_heads=self.num_heads, mlp_dim=self.mlp_dim, activation=self.activation,
            epsilon=self.epsilon, dtype=self.dtype,
        )  # fmt: skip
        x = stack(block, self.num_layers, x, train=train)
        x = normalization("layer", self.dtype, "norm", self.epsilon)(x)
        if visible is None:
            return x.mean(1).astype(jnp.float32)
        decoder = _Decoder(
            self.decoder_layers, self.decoder_heads, self.decoder_dim, self.activation,
            self.epsilon, self.dtype, name="decoder",
        )  # fmt: skip
        return decoder(x, visible, patches.shape, train)

    def encode(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns features of whole images, (batch, embed) float32."""
        return self(images, train=train)


class _Decoder(nn.Module):
    """Predicts all patches from the embeddings of visible ones."""

    num_layers: int
    num_heads: int
    embed_dim: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, visible: jax.Array, shape: tuple[int, ...], train: bool
    ) -> jax.Array:
        """Returns patches of a shape (batch, patches, pixels) float32."""
        batch, count, pixels = shape
        init = nn.initializers.normal(0.02)
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="embed")(x)
        hidden = self.param("mask_token", init, (self.embed_dim,)).astype(self.dtype)
        whole = jnp.broadcast_to(hidden, (batch, count, self.embed_dim))
        whole = jax.vmap(lambda row, index, own: row.at[index].set(own))(whole, visible, x)
        positions = self.param("positions", init, (count, self.embed_dim))
        block = partial(
            Block, num_heads=self.num_heads, activation=self.activation, epsilon=self.epsilon,
            dtype=self.dtype,
        )  # fmt: skip
        x = stack(block, self.num_layers, whole + positions.astype(self.dtype), train=train)
        x = normalization("layer", self.dtype, "norm", self.epsilon)(x)
        return nn.Dense(pixels, dtype=self.dtype, name="pixels")(x).astype(jnp.float32)
