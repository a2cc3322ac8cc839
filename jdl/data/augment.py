"""Augmentation in the compiled step, with one key per example; no-op in evaluation."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.typing import Batch, Keys

Array = jax.Array

FillMode = Literal["nearest", "reflect", "constant", "wrap"]


@dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """Rotates, shifts, shears, zooms and flips images in one bilinear resampling.

    Options, ranges and the order of the parts are those of Keras' `ImageDataGenerator`. Training
    images become float32.
    """

    rotation_range: float = 0.0  # degrees each way
    width_shift_range: float = 0.0  # fraction of the width each way
    height_shift_range: float = 0.0  # fraction of the height each way
    shear_range: float = 0.0  # degrees each way
    zoom_range: float = 0.0  # each side is scaled by its own factor in [1 - zoom, 1 + zoom]
    horizontal_flip: bool = False  # flip half of the images
    fill_mode: FillMode = "nearest"  # fill beyond the edges, see `resample`
    cval: float = 0.0  # fill value of `constant`
    name: str = "image"  # of the array (batch, height, width, channels)

    def __post_init__(self) -> None:
        if not 0 <= self.zoom_range < 1:
            raise UserError(f"zoom_range is a share in [0, 1), not {self.zoom_range}")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image transformed with its own key."""
        if keys is None:
            return batch

        def one(key: Array, image: Array) -> Array:
            matrix = self.matrix(key, *image.shape[:2])
            return resample(image, matrix, self.fill_mode, self.cval)

        return {**batch, self.name: jax.vmap(one)(keys, batch[self.name])}

    def matrix(self, key: Array, height: int, width: int) -> Array:
        """Returns a random (2, 3) matrix from output to input positions."""
        turn, down, right, shear, tall, wide, flip = jax.random.uniform(key, (7,), minval=-1.0)
        angle = jnp.deg2rad(turn * self.rotation_range)
        shear = jnp.deg2rad(shear * self.shear_range)
        one, zero = jnp.ones(()), jnp.zeros(())

        def rows(*values: Array) -> Array:
            return jnp.stack([*values, zero, zero, one]).reshape(3, 3)

        centre = jnp.array([height / 2 - 0.5, width / 2 - 0.5])
        mirrored = jnp.where(self.horizontal_flip & (flip > 0), -1.0, 1.0)
        parts = (
            rows(one, zero, centre[0], zero, one, centre[1]),
            rows(jnp.cos(angle), -jnp.sin(angle), zero, jnp.sin(angle), jnp.cos(angle), zero),
            rows(
                one, zero, down * self.height_shift_range * height,
                zero, one, right * self.width_shift_range * width,
            ),
            rows(one, -jnp.sin(shear), zero, zero, jnp.cos(shear), zero),
            rows(1 + tall * self.zoom_range, zero, zero, zero, 1 + wide * self.zoom_range, zero),
            rows(one, zero, zero, zero, mirrored, zero),
            rows(one, zero, -centre[0], zero, one, -centre[1]),
        )  # fmt: skip
        return jnp.linalg.multi_dot([*parts], precision="highest")[:2]


def resample(
    image: Array, matrix: Array, fill_mode: FillMode = "nearest", cval: float = 0
) -> Array:
    """Applies an affine map to an image, with bilinear interpolation.

    Equal to `scipy.ndimage.affine_transform(channel, matrix[:, :2], matrix[:, 2], order=1,
    mode=fill_mode, cval=cval)` for each channel.

    Args:
      image: (height, width, channels).
      matrix: (2, 3); `matrix @ (row, column, 1)` is the input position of an output pixel.
      fill_mode: beyond the edges, `nearest`: the pixel at the edge; `reflect`: mirrored, the edge
        twice; `wrap`: from the other side; `constant`: `cval`.
      cval: see `fill_mode`.

    Returns:
      (height, width, channels) float32.
    """
    height, width, channels = image.shape
    i, j = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    places = [row[0] * i + row[1] * j + row[2] for row in matrix]
    if fill_mode == "wrap":  # as SciPy: the last pixel is the first again
        sizes = [max(size - 1, 1) for size in (height, width)]
        places = [
            jnp.where((p < 0) | (p > n), p % n, p) for p, n in zip(places, sizes, strict=True)
        ]
    lower = [jnp.floor(place) for place in places]
    pixels = image.reshape(-1, channels).astype(jnp.float32)

    def corner(down: int, right: int) -> Array:
        row = _inside(lower[0].astype(jnp.int32) + down, height, fill_mode)
        column = _inside(lower[1].astype(jnp.int32) + right, width, fill_mode)
        weight = jnp.ones(())
        for place, low, step in zip(places, lower, (down, right), strict=True):
            weight = weight * (place - low if step else 1 - (place - low))
        return weight[..., None] * pixels[row * width + column]

    found = corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)
    if fill_mode == "constant":
        (row, column), ends = places, (height - 1, width - 1)
        seen = (row >= 0) & (row <= ends[0]) & (column >= 0) & (column <= ends[1])
        found = jnp.where(seen[..., None], found, cval)
    return found


def _inside(index: Array, size: int, fill_mode: FillMode) -> Array:
    if fill_mode == "reflect":
        index = index % (2 * size)
        return jnp.minimum(index, 2 * size - 1 - index)
    return jnp.clip(index, 0, size - 1)


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Shifts an image by up to `padding` pixels each way, filling with zeros.

    The padded crop of He et al. (2016, section 4.2).
    """

    padding: int = 4  # pixels
    name: str = "image"  # of the array (batch, height, width, channels)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image shifted with its own key."""
        if keys is None:
            return batch

        def crop(key: Array, image: Array) -> Array:
            pad = self.padding
            offset = jax.random.randint(key, (2,), 0, 2 * pad + 1)
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)

        return {**batch, self.name: jax.vmap(crop)(keys, batch[self.name])}


@dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Flips half of the images horizontally."""

    name: str = "image"  # of the array (batch, height, width, channels)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image flipped or not by its own key."""
        if keys is None:
            return batch
        images = batch[self.name]
        flip = jax.vmap(jax.random.bernoulli)(keys)
        return {
            **batch,
            self.name: jnp.where(flip[:, None, None, None], images[:, :, ::-1], images),
        }


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Scales brightness, contrast and saturation by random factors, in that order.

    Each factor is in [1 - x, 1 + x]; contrast is scaled about the mean gray of the image,
    saturation about the gray of each pixel (ITU-R BT.601). Values stay within [0, `white`].
    Training images become float32.
    """

    brightness: float = 0.0  # x of the factor of all values
    contrast: float = 0.0  # x of the factor of the distance to the mean gray
    saturation: float = 0.0  # x of the factor of the distance to the pixel's gray
    white: float = 255.0  # the largest value
    name: str = "image"  # of the array (batch, height, width, 1 or 3)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image changed with its own key."""
        if keys is None:
            return batch

        def one(key: Array, image: Array) -> Array:
            x, factors = image.astype(jnp.float32), jax.random.uniform(key, (3,), minval=-1.0)
            x = self._clip(x * (1 + self.brightness * factors[0]))
            mean = grayscale(x).mean()
            x = self._clip(mean + (x - mean) * (1 + self.contrast * factors[1]))
            luma = grayscale(x)
            return self._clip(luma + (x - luma) * (1 + self.saturation * factors[2]))

        return {**batch, self.name: jax.vmap(one)(keys, batch[self.name])}

    def _clip(self, x: Array) -> Array:
        return jnp.clip(x, 0, self.white)


def grayscale(image: Array) -> Array:
    """Returns the ITU-R BT.601 luma (height, width, 1) of an image (height, width, 1 or 3)."""
    if image.shape[-1] == 1:
        return image
    return (image * jnp.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Zeroes a square at a random position, clipped at the edges (DeVries and Taylor, 2017)."""

    size: int = 16  # side in pixels
    name: str = "image"  # of the array (batch, height, width, channels)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image with its own square."""
        if keys is None:
            return batch
        images = batch[self.name]
        height, width = images.shape[1:3]
        centres = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        inside = _box(centres * jnp.array([height, width]), self.size, self.size, height, width)
        return {
            **batch,
            self.name: jnp.where(inside[..., None], jnp.zeros((), images.dtype), images),
        }


def _box(centres: Array, tall: Array | int, wide: Array | int, height: int, width: int) -> Array:
    """Returns a mask (batch, height, width) of boxes around `centres` (batch, 2)."""
    down = jnp.abs(jnp.arange(height) + 0.5 - centres[:, :1]) < jnp.asarray(tall).reshape(-1, 1) / 2
    right = jnp.abs(jnp.arange(width) + 0.5 - centres[:, 1:]) < jnp.asarray(wide).reshape(-1, 1) / 2
    return down[:, :, None] & right[:, None, :]


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixes each image and label with its neighbor in the batch (Zhang et al., 2018).

    Labels (batch,) become class weights (batch, classes) float32, images float32.
    """

    num_classes: int = 10  # number of classes
    alpha: float = 0.2  # mixing weights follow Beta(alpha, alpha)
    name: str = "image"  # of the array (batch, ...)
    label: str = "label"  # of the array (batch,)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each pair mixed with the key of its first image."""
        if keys is None:
            return batch
        share = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(keys)
        images = batch[self.name].astype(jnp.float32)
        each = share.reshape(-1, *[1] * (images.ndim - 1))
        mixed = each * images + (1 - each) * jnp.roll(images, 1, axis=0)
        return {
            **batch,
            self.name: mixed,
            self.label: _mix(batch[self.label], share, self.num_classes),
        }


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Pastes a box of its neighbor in the batch into each image (Yun et al., 2019).

    Labels (batch,) become class weights (batch, classes) float32, by area.
    """

    num_classes: int = 10  # number of classes
    alpha: float = 1.0  # kept areas follow Beta(alpha, alpha)
    name: str = "image"  # of the array (batch, height, width, channels)
    label: str = "label"  # of the array (batch,)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each pair mixed with the key of its first image."""
        if keys is None:
            return batch
        images = batch[self.name]
        height, width = images.shape[1:3]

        def draw(key: Array) -> tuple[Array, Array]:
            area, place = jax.random.split(key)
            side = jnp.sqrt(1 - jax.random.beta(area, self.alpha, self.alpha))
            return side, jax.random.uniform(place, (2,)) * jnp.array([height, width])

        sides, centres = jax.vmap(draw)(keys)
        inside = _box(centres, sides * height, sides * width, height, width)
        mixed = jnp.where(inside[..., None], jnp.roll(images, 1, axis=0), images)
        share = 1 - inside.astype(jnp.float32).mean((1, 2))
        return {
            **batch,
            self.name: mixed,
            self.label: _mix(batch[self.label], share, self.num_classes),
        }


def _mix(labels: Array, share: Array, classes: int) -> Array:
    each = jax.nn.one_hot(labels, classes)
    return share[:, None] * each + (1 - share[:, None]) * jnp.roll(each, 1, axis=0)
