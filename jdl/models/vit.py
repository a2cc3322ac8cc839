"""Vision transformer: an image as a sequence of patches (Dosovitskiy et al., 2021)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import Block, Dropout, check_sizes, exact_gelu, normalisation, stack


class ViT(nn.Module):
    """Patches laid flat and projected, learned places, blocks, and logits.

    Takes images (batch, height, width, channels), whose sides the patch divides, and gives logits
    (batch, outputs) float32, from a learned first vector or from the mean over patches.
    """

    patch: int = 16  # side of a patch in pixels
    layers: int = 12  # blocks
    heads: int = 6  # of each attention
    width: int = 384  # of the sequence
    hidden: int | None = None  # units of the feed-forward networks; None: four times the width
    outputs: int = 10  # classes
    pool: Literal["first", "mean"] = "first"  # what is classified
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the feed-forward networks
    epsilon: float = 1e-6  # of the norms
    dropout: float = 0.0  # share dropped of the embeddings and of each part of a block
    remat: bool = False  # compute activations again in the backward pass, to save memory
    scan: bool = False  # compile one block and loop over its weights: compiles faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits."""
        check_sizes(self, "patch", "layers", "heads", "width", "hidden")
        x = self._patches(images)
        init = nn.initializers.normal(0.02)
        if self.pool == "first":
            first = self.param("first", nn.initializers.zeros, (1, 1, self.width))
            first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.param("positions", init, (x.shape[1], self.width)).astype(self.dtype)
        x = Dropout(self.dropout, deterministic=not train)(x)
        block = partial(
            Block, heads=self.heads, hidden=self.hidden, activation=self.activation,
            epsilon=self.epsilon, dropout=self.dropout, dtype=self.dtype,
        )  # fmt: skip
        x = stack(block, self.layers, x, remat=self.remat, scan=self.scan, train=train)
        x = normalisation("layer", self.dtype, "norm", self.epsilon)(x)
        x = x[:, 0] if self.pool == "first" else x.mean(1)
        logits = nn.Dense(self.outputs, kernel_init=init, dtype=self.dtype, name="logits")
        return logits(x).astype(jnp.float32)

    def _patches(self, images: jax.Array) -> jax.Array:
        """(batch, patches, width): a convolution that steps by its own size is one product."""
        batch, height, width, channels = images.shape
        side = self.patch
        if height % side or width % side:
            raise UserError(
                f"images of {height}x{width} pixels cannot be cut into patches of {side}: set "
                f"model.patch"
            )
        x = images.reshape(batch, height // side, side, width // side, side, channels)
        x = x.swapaxes(2, 3).reshape(batch, -1, side * side * channels).astype(self.dtype)
        return nn.Dense(self.width, dtype=self.dtype, dot_general=ops.dot_general, name="patches")(
            x
        )


ViTTiny16 = partial(ViT, heads=3, width=192)
ViTSmall16 = partial(ViT, heads=6, width=384)
"""22,050,664 parameters on images of 224x224 and 1,000 classes."""
ViTBase16 = partial(ViT, heads=12, width=768)
"""86,567,656 parameters on images of 224x224 and 1,000 classes."""
ViTLarge16 = partial(ViT, layers=24, heads=16, width=1024)
"""304,326,632 parameters on images of 224x224 and 1,000 classes."""
