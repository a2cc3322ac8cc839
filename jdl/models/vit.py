"""Vision transformer: an image as a sequence of patches (Dosovitskiy et al., 2021)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, Dropout, check_sizes, cut_patches, exact_gelu, normalization, stack


class ViT(nn.Module):
    """Projected patches, learned position embeddings, pre-norm blocks, and logits.

    Maps images (batch, height, width, channels), sides divisible by `patch_size`, to logits (batch,
    num_classes) float32, from a class token or from the mean over patches.
    """

    patch_size: int = 16  # side of a patch in pixels
    num_layers: int = 12  # blocks
    num_heads: int = 6  # heads of each attention
    embed_dim: int = 384  # size of token embeddings and of each position's state
    mlp_dim: int | None = None  # hidden units of the feed-forward networks; None: 4 * embed_dim
    num_classes: int = 10  # number of logits
    pool: Literal["first", "mean"] = "first"  # class token, or mean over patches
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the feed-forward networks
    epsilon: float = 1e-6  # of the normalization layers
    dropout_rate: float = 0.0  # for embeddings and the output of each sublayer
    remat: bool = False  # recompute activations in the backward pass, to save memory
    scan: bool = False  # stack the blocks' weights and scan over them, to compile faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes)."""
        check_sizes(self)
        x = self._patches(images)
        init = nn.initializers.normal(0.02)
        if self.pool == "first":
            first = self.param("first", nn.initializers.zeros, (1, 1, self.embed_dim))
            first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, self.embed_dim))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.param("positions", init, (x.shape[1], self.embed_dim)).astype(self.dtype)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        block = partial(
            Block, num_heads=self.num_heads, mlp_dim=self.mlp_dim, activation=self.activation,
            epsilon=self.epsilon, dropout_rate=self.dropout_rate, dtype=self.dtype,
        )  # fmt: skip
        x = stack(block, self.num_layers, x, remat=self.remat, scan=self.scan, train=train)
        x = normalization("layer", self.dtype, "norm", self.epsilon)(x)
        x = x[:, 0] if self.pool == "first" else x.mean(1)
        logits = nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="logits")
        return logits(x).astype(jnp.float32)

    def _patches(self, images: jax.Array) -> jax.Array:
        """Embeds patches by one product: a strided convolution. Returns (batch, patches, embed)."""
        x = cut_patches(images, self.patch_size).astype(self.dtype)
        return nn.Dense(
            self.embed_dim, dtype=self.dtype, dot_general=ops.dot_general, name="patches"
        )(x)


ViTTiny16 = partial(ViT, num_heads=3, embed_dim=192)
ViTSmall16 = partial(ViT, num_heads=6, embed_dim=384)
"""22,050,664 parameters on images of 224x224 and 1,000 classes."""
ViTBase16 = partial(ViT, num_heads=12, embed_dim=768)
"""86,567,656 parameters on images of 224x224 and 1,000 classes."""
ViTLarge16 = partial(ViT, num_layers=24, num_heads=16, embed_dim=1024)
"""304,326,632 parameters on images of 224x224 and 1,000 classes."""
