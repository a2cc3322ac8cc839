"""Residual networks for ImageNet and CIFAR (He et al., 2016)."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import NormedConv, Residual


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling, and a dense layer.

    Maps images (batch, height, width, channels) to logits (batch, num_classes) float32. The first
    block of each stage but the first halves height and width and doubles the channels; in a
    bottleneck its 3x3 convolution has the stride ("v1.5").
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)  # residual blocks of each stage
    num_filters: int = 64  # channels of the first stage
    bottleneck: bool = True  # blocks of 1x1, 3x3, 1x1 with four times the channels at their end
    stem: Literal["photograph", "small"] = "photograph"  # 7x7 with stride 2 and a pool; or 3x3
    shortcut: Literal["projection", "padding"] = "projection"  # where a block changes the shape
    num_classes: int = 1000  # logits of the last layer
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        if self.stem == "photograph":
            x = NormedConv(self.num_filters, 7, 2, self.dtype, name="stem")(x, train)
            x = ops.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            x = nn.relu(NormedConv(self.num_filters, 3, 1, self.dtype, name="stem")(x, train))
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                block = Residual(
                    self.num_filters << stage,
                    2 if stage and not index else 1,
                    self.bottleneck,
                    self.shortcut,
                    self.dtype,
                    name=f"stage{stage}_block{index}",
                )
                x = block(x, train)
        x = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), bottleneck=False)
"""11,689,512 parameters."""

ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=False)
"""21,797,672 parameters."""

ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
"""25,557,032 parameters."""

ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3))
"""44,549,160 parameters."""

ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3))
"""60,192,808 parameters."""

_small = partial(
    ResNet, num_filters=16, bottleneck=False, stem="small", shortcut="padding", num_classes=10
)

ResNet8 = partial(_small, stage_sizes=(1, 1, 1))
"""For small images such as those of CIFAR-10; 6 n + 2 layers (section 4.2)."""

ResNet20 = partial(_small, stage_sizes=(3, 3, 3))
"""0.27 million parameters."""

ResNet32 = partial(_small, stage_sizes=(5, 5, 5))
"""0.46 million parameters."""

ResNet44 = partial(_small, stage_sizes=(7, 7, 7))
"""0.66 million parameters."""

ResNet56 = partial(_small, stage_sizes=(9, 9, 9))
"""0.85 million parameters."""

ResNet110 = partial(_small, stage_sizes=(18, 18, 18))
"""1.7 million parameters."""
