"""ConvNeXt: a convolutional network in the shape of a vision transformer (Liu et al., 2022)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import exact_gelu


class ConvNeXt(nn.Module):
    """A stem of patches of 4x4 pixels, stages of blocks, global average pooling, a dense layer.

    Maps images (batch, height, width, channels), sides divisible by 32 for four stages, to logits
    (batch, num_classes) float32. Each stage but the first begins by halving height and width.
    """

    stage_sizes: tuple[int, ...] = (3, 3, 9, 3)  # blocks of each stage
    embed_dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of each stage
    patch_size: int = 4  # side of a patch of the stem in pixels
    num_classes: int = 1000  # logits of the last layer
    epsilon: float = 1e-6  # of the normalization layers
    layer_scale: float = 1e-6  # initial factor of what a block adds
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model; training does not differ."""
        del train
        self._check(x.shape)
        x = self._norm("stem_norm")(self._patches(self.embed_dims[0], self.patch_size, "stem")(x))
        for stage, (blocks, channels) in enumerate(
            zip(self.stage_sizes, self.embed_dims, strict=True)
        ):
            if stage:
                x = self._norm(f"stage{stage}_norm")(x)
                x = self._patches(channels, 2, f"stage{stage}_downsample")(x)
            for index in range(blocks):
                block = ConvNeXtBlock(
                    self.epsilon, self.layer_scale, self.dtype, name=f"stage{stage}_block{index}"
                )
                x = block(x)
        x = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        logits = nn.Dense(self.num_classes, kernel_init=INIT, dtype=self.dtype, name="logits")
        return logits(self._norm("norm")(x)).astype(jnp.float32)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(self.stage_sizes) != len(self.embed_dims):
            raise UserError(
                f"model.stage_sizes names {len(self.stage_sizes)} stages and model.embed_dims "
                f"{len(self.embed_dims)}: give each a number in both"
            )
        least = self.patch_size << (len(self.embed_dims) - 1)
        if shape[1] % least or shape[2] % least:
            raise UserError(
                f"images of {shape[1]}x{shape[2]} pixels cannot be halved by every stage: resize "
                f"them to multiples of {least}"
            )

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, name=name)

    def _patches(self, channels: int, side: int, name: str) -> nn.Conv:
        return nn.Conv(
            channels, (side, side), side, padding="VALID", kernel_init=INIT, dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated, name=name,
        )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution and a network of two dense layers, scaled and added."""

    epsilon: float = 1e-6  # of the normalization layer
    layer_scale: float = 1e-6  # initial factor of what is added
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) to the same shape."""
        channels = x.shape[-1]
        depthwise = nn.Conv(
            channels, (7, 7), padding=((3, 3), (3, 3)), feature_group_count=channels,
            kernel_init=INIT, dtype=self.dtype, name="depthwise",
        )  # fmt: skip
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(depthwise(x))
        dense = partial(nn.Dense, kernel_init=INIT, dtype=self.dtype, dot_general=ops.dot_general)
        y = exact_gelu(dense(4 * channels, name="inner")(y))
        y = dense(channels, name="outer")(y)
        scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        return x + scale.astype(self.dtype) * y


INIT = nn.initializers.truncated_normal(0.02)

ConvNeXtAtto = partial(ConvNeXt, stage_sizes=(2, 2, 6, 2), embed_dims=(40, 80, 160, 320))
"""3,695,520 parameters."""
ConvNeXtTiny = partial(ConvNeXt)
"""28,589,128 parameters."""
ConvNeXtSmall = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3))
"""50,223,688 parameters."""
ConvNeXtBase = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), embed_dims=(128, 256, 512, 1024))
"""88,591,464 parameters."""
ConvNeXtLarge = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), embed_dims=(192, 384, 768, 1536))
"""197,767,336 parameters."""
