"""DeepLabv3+."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers import NormedConv, Residual


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (Chen et al., 2018): one output vector for each block of 4x4 pixels.

    A residual network whose last stages dilate their convolutions instead of halving the image,
    atrous spatial pyramid pooling, and a decoder that adds the first stage's activations. Maps
    images (batch, height, width, channels) to (batch, height / 4, width / 4, features) float32,
    sides rounded up. Stem and stages are named as those of `ResNet`, whose weights `init_from`
    takes.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)  # residual blocks of each stage
    num_filters: int = 64  # channels of the first stage, doubled by each further one
    bottleneck: bool = True  # blocks of 1x1, 3x3, 1x1 with four times the channels at their end
    output_stride: int = 16  # pixels in a cell of the last stage: 4, 8, 16 or 32
    rates: tuple[int, ...] = (6, 12, 18)  # dilations in the pyramid; twice as large at stride 8
    pyramid_channels: int = 256  # of each of its branches, and of the decoder
    skip_channels: int = 48  # to which the first stage's activations are reduced
    features: int = 21  # outputs of each block, such as one per class
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model."""
        if self.output_stride not in (4, 8, 16, 32):
            raise UserError(f"output_stride is 4, 8, 16 or 32, not {self.output_stride}")
        x = NormedConv(self.num_filters, 7, 2, self.dtype, name="stem")(x, train)
        x = ops.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        skip, stride, dilation = x, 4, 1
        for stage, blocks in enumerate(self.stage_sizes):
            halves = stage > 0 and stride < self.output_stride
            stride, dilation = stride << halves, dilation << (stage > 0 and not halves)
            for index in range(blocks):
                block = Residual(
                    self.num_filters << stage,
                    2 if halves and not index else 1,
                    self.bottleneck,
                    dtype=self.dtype,
                    dilation=dilation,
                    name=f"stage{stage}_block{index}",
                )
                x = block(x, train)
            skip = x if stage == 0 else skip
        x = resize(self._pyramid(x, train), skip)
        skip = nn.relu(NormedConv(self.skip_channels, 1, 1, self.dtype, name="skip")(skip, train))
        x = jnp.concatenate([x, skip], -1)
        for index in range(2):
            name = f"decoder{index}"
            x = nn.relu(NormedConv(self.pyramid_channels, 3, 1, self.dtype, name=name)(x, train))
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def _pyramid(self, x: jax.Array, train: bool) -> jax.Array:
        """Atrous spatial pyramid pooling (Chen et al., 2017, figure 5)."""
        conv = partial(NormedConv, self.pyramid_channels, dtype=self.dtype)
        branches = [conv(size=1, name="pyramid0")(x, train)]
        for index, rate in enumerate(self.rates, start=1):
            branches.append(conv(size=3, dilation=rate, name=f"pyramid{index}")(x, train))
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        mean = conv(size=1, name="pyramid_mean")(mean, train)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = nn.relu(jnp.concatenate(branches, -1))
        return nn.relu(conv(size=1, name="pyramid")(x, train))


def resize(x: jax.Array, like: jax.Array) -> jax.Array:
    """Scales bilinearly to height and width of `like`."""
    return jax.image.resize(x, (len(x), *like.shape[1:3], x.shape[-1]), "bilinear")


DeepLabV3PlusResNet18 = partial(DeepLabV3Plus, stage_sizes=(2, 2, 2, 2), bottleneck=False)
"""With the residual blocks of ResNet-18."""

DeepLabV3PlusResNet50 = partial(DeepLabV3Plus, stage_sizes=(3, 4, 6, 3))
"""With those of ResNet-50."""

DeepLabV3PlusSmall = partial(
    DeepLabV3PlusResNet18, num_filters=24, output_stride=8, rates=(3, 6, 9), pyramid_channels=64,
    skip_channels=24,
)  # fmt: skip
"""For images of a few hundred pixels."""
