"""U-Net, and the losses of segmentation and of detection by centers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

PRIOR = 0.1
"""Probability of a center where the output is 0."""


class UNet(nn.Module):
    """U-Net with group norm; uint8 images to an output for each block of pixels."""

    channels: tuple[int, ...]  # of each level, from the finest
    features: int  # outputs of each block
    stride: int  # pixels along a block's sides
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        count, height, width, channels = image.shape
        side = self.stride
        x = image.astype(jnp.float32) / 255
        x = x.reshape(count, height // side, side, width // side, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(count, height // side, width // side, -1).astype(self.dtype)
        skips = []
        for level, channels in enumerate(self.channels):
            if level:
                skips.append(x)
                x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
            x = self._block(x, channels)
        for channels in self.channels[-2::-1]:
            skip = skips.pop()
            x = x.repeat(2, axis=1).repeat(2, axis=2)[:, : skip.shape[1], : skip.shape[2]]
            x = self._block(jnp.concatenate([x, skip], axis=-1), channels)
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x)

    def _block(self, x: jax.Array, channels: int) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.GroupNorm(num_groups=None, group_size=8, dtype=self.dtype)(x))
        return x


def segmentation_loss(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """The mean cross-entropy over pixels of a class; the id after the last is ignored."""
    masks = masks[..., 0].astype(jnp.int32)
    classes = logits.shape[-1]
    logits = jax.image.resize(logits, (*masks.shape, classes), "bilinear")
    counted = masks != classes
    labels = jnp.where(counted, masks, 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(where=counted)


def detection_loss(outputs: jax.Array, batch: dict[str, Any]) -> jax.Array:
    """The penalty-reduced focal loss and L1 of offset and log size, a mean over boxes."""
    heat, found = outputs[..., :-4] + np.log(PRIOR / (1 - PRIOR)), outputs[..., -4:]
    rows, height, width, classes = heat.shape
    kept = batch["boxes_mask"]
    cells = batch["boxes"] * (width / batch["image"].shape[2])
    center, side = (cells[..., :2] + cells[..., 2:]) / 2, cells[..., 2:] - cells[..., :2]
    place = jnp.clip(jnp.floor(center), 0, jnp.array([width - 1, height - 1]))
    distance = (
        jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1) - place[:, :, None, None]
    ) / ((0.54 * side + 1) / 6)[:, :, None, None]
    gaussians = jnp.exp(-(distance**2).sum(-1) / 2)  # (batch, boxes, height, width)
    own = jax.nn.one_hot(batch["labels"], classes) * kept[..., None]
    target = (gaussians[..., None] * own[:, :, None, None]).max(1)
    share = jax.nn.sigmoid(heat)
    focal = jnp.where(
        target == 1,
        (1 - share) ** 2 * optax.sigmoid_binary_cross_entropy(heat, 1.0),
        (1 - target) ** 4 * share**2 * optax.sigmoid_binary_cross_entropy(heat, 0.0),
    )
    index = (place[..., 1] * width + place[..., 0]).astype(jnp.int32)
    found = jnp.take_along_axis(found.reshape(rows, -1, 4), index[..., None], axis=1)
    wanted = jnp.concatenate([center - place, jnp.log(side)], -1)
    l1 = jnp.abs(found - wanted).sum(where=kept[..., None])
    return (focal.sum() + l1) / jnp.maximum(kept.sum(1), 1).sum()
