"""RandAugment in the compiled step: random choices from fourteen operations."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdl.data.augment import grayscale, map_images
from jdl.data.geometry import images_only, resample
from jdl.errors import UserError
from jdl.typing import Batch, Keys

Array = jax.Array

MAX_MAGNITUDE = 30
"""The largest magnitude; the ranges below are those at it, as in torchvision."""


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Applies `num_ops` random operations to each image (Cubuk et al., 2020).

    The operations: identity, shear and shift along each axis, rotation, brightness, color,
    contrast, sharpness, posterize, solarize, autocontrast, equalize. Images are of
    bytes 0 to 255; training images become float32 with whole numbers in that range.
    """

    num_ops: int = 2  # operations on each image
    magnitude: int = 9  # of all operations, 0 to 30
    name: str = "image"  # of the array (batch, height, width, 1 or 3)

    def __post_init__(self) -> None:
        if self.num_ops < 1 or not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise UserError(
                f"RandAugment needs num_ops >= 1 and a magnitude in 0..{MAX_MAGNITUDE}, not "
                f"{self.num_ops} and {self.magnitude}"
            )

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image changed with its own key."""
        images_only(batch, self)

        def one(key: Array, image: Array) -> Array:
            image = image.astype(jnp.float32)
            for index in range(self.num_ops):
                image = self._apply(jax.random.fold_in(key, index), image)
            return image

        return map_images(batch, keys, self.name, one)

    def _apply(self, key: Array, image: Array) -> Array:
        which, sign = jax.random.split(key)
        level = self.magnitude / MAX_MAGNITUDE
        signed = jnp.where(jax.random.bernoulli(sign), level, -level)
        drawn = jax.random.randint(which, (), 0, len(GEOMETRIC_OPS) + len(COLOR_OPS) + 1)
        # Geometric operations share one resampling: under vmap, every branch is computed.
        matrices = jnp.stack([shape(signed, *image.shape[:2]) for shape in GEOMETRIC_OPS])
        moved = resample(image, matrices[jnp.minimum(drawn, len(GEOMETRIC_OPS) - 1)], "constant")
        color_ops = [lambda x, f=f: f(x, signed, level) for f in COLOR_OPS]
        options = [lambda _: moved, *color_ops, lambda x: x]
        found = jax.lax.switch(jnp.maximum(drawn - len(GEOMETRIC_OPS) + 1, 0), options, image)
        return jnp.clip(jnp.round(found), 0, 255)


def shear_rows(m: Array, height: int, width: int) -> Array:
    """Shifts columns by up to 0.3 of the distance to the middle."""
    return jnp.array([[1, 0.3 * m, -0.3 * m * (width - 1) / 2], [0, 1, 0]])


def shear_columns(m: Array, height: int, width: int) -> Array:
    """Shifts rows by up to 0.3 of the distance to the middle."""
    return jnp.array([[1, 0, 0], [0.3 * m, 1, -0.3 * m * (height - 1) / 2]])


def shift_rows(m: Array, height: int, width: int) -> Array:
    """Moves the image by up to 150/331 of its height."""
    return jnp.array([[1, 0, 150 / 331 * m * height], [0, 1, 0]])


def shift_columns(m: Array, height: int, width: int) -> Array:
    """Moves the image by up to 150/331 of its width."""
    return jnp.array([[1, 0, 0], [0, 1, 150 / 331 * m * width]])


def rotate(m: Array, height: int, width: int) -> Array:
    """Rotates the image about its center by up to 30 degrees."""
    angle = jnp.deg2rad(30 * m)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
    return jnp.concatenate([turn, (middle - turn @ middle)[:, None]], axis=1)


def brightness(x: Array, m: Array, level: float) -> Array:
    """Scales all values by up to 1 -+ 0.9."""
    return x * (1 + 0.9 * m)


def color(x: Array, m: Array, level: float) -> Array:
    """Scales the distance to the gray of each pixel."""
    return _blend(jnp.round(grayscale(x)), x, m)


def contrast(x: Array, m: Array, level: float) -> Array:
    """Scales the distance to the mean gray."""
    return _blend(jnp.floor(jnp.round(grayscale(x)).mean() + 0.5), x, m)


def sharpness(x: Array, m: Array, level: float) -> Array:
    """Scales the distance to the smoothed image; the pixels at the edges stay."""
    weights = jnp.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    height, width = x.shape[:2]
    parts = [
        weights[i, j] * x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    ]
    smooth = x.at[1:-1, 1:-1].set(jnp.clip(jnp.round(sum(parts)), 0, 255))
    return _blend(smooth, x, m)


def posterize(x: Array, m: Array, level: float) -> Array:
    """Keeps the highest 8 to 4 bits of each value."""
    step = 2.0 ** round(4 * level)
    return jnp.floor(x / step) * step


def solarize(x: Array, m: Array, level: float) -> Array:
    """Inverts the values at or above a threshold, which falls from 255 to 0."""
    return jnp.where(x >= 255 * (1 - level), 255 - x, x)


def auto_contrast(x: Array, m: Array, level: float) -> Array:
    """Stretches each channel to the whole range."""
    low, high = x.min((0, 1)), x.max((0, 1))
    scale = 255 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.floor((x - low) * scale), x)


def equalize(x: Array, m: Array, level: float) -> Array:
    """Spreads the values of each channel evenly over the range, as Pillow does."""
    values = x.astype(jnp.int32)

    def one(channel: Array) -> Array:
        counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (counts.sum() - last) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[channel], channel)

    return jax.vmap(one, in_axes=2, out_axes=2)(values).astype(jnp.float32)


def _blend(other: Array, x: Array, m: Array) -> Array:
    return other + (x - other) * (1 + 0.9 * m)


GEOMETRIC_OPS = (shear_rows, shear_columns, shift_rows, shift_columns, rotate)
COLOR_OPS = (
    brightness, color, contrast, sharpness, posterize, solarize, auto_contrast, equalize,
)  # fmt: skip
