"""Augmentation in the compiled step, with one key per example; no-op in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jdl.data.geometry import FillMode, Geometric, images_only, resample
from jdl.errors import UserError
from jdl.tracing import roll_rows
from jdl.typing import Batch, Keys

Array = jax.Array


def map_images(
    batch: Batch, keys: Keys | None, name: str, transform: Callable[[Array, Array], Array]
) -> Batch:
    """Replaces each image (height, width, channels) by `transform(key, image)` in training."""
    return batch if keys is None else {**batch, name: jax.vmap(transform)(keys, batch[name])}


@dataclass(frozen=True, kw_only=True)
class RandomAffine(Geometric):
    """Rotates, shifts, shears, zooms and flips images in one bilinear resampling.

    Options, ranges and the order of the parts are those of Keras' `ImageDataGenerator`. Training
    images become float32. Masks take the nearest pixel; boxes become the hulls of their corners.
    """

    rotation_range: float = 0.0  # degrees each way
    width_shift_range: float = 0.0  # fraction of the width each way
    height_shift_range: float = 0.0  # fraction of the height each way
    shear_range: float = 0.0  # degrees each way
    zoom_range: float = 0.0  # each side is scaled by its own factor in [1 - zoom, 1 + zoom]
    horizontal_flip: bool = False  # flip half of the images
    fill_mode: FillMode = "nearest"  # fill beyond the edges, see `resample`
    cval: float = 0.0  # fill value of `constant`
    mask_cval: int | None = None  # fill value of masks, such as the ignored class

    def __post_init__(self) -> None:
        if not 0 <= self.zoom_range < 1:
            raise UserError(f"zoom_range is a share in [0, 1), not {self.zoom_range}")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image transformed with its own key."""

        if keys is None:
            return batch

        def pixels(key: Array, image: Array, is_mask: bool) -> Array:
            matrix = self.matrix(key, *image.shape[:2])
            if not is_mask:
                return resample(image, matrix, self.fill_mode, self.cval)
            fill = mask_fill(self, self.fill_mode, self.mask_cval)
            return resample(image, matrix, self.fill_mode, fill, order=0)

        return self.apply(batch, keys, pixels, self.matrix)

    def matrix(self, key: Array, height: int, width: int) -> Array:
        """Returns a random (2, 3) matrix from output to input positions."""
        turn, down, right, shear, tall, wide, flip = jax.random.uniform(key, (7,), minval=-1.0)
        angle = jnp.deg2rad(turn * self.rotation_range)
        shear = jnp.deg2rad(shear * self.shear_range)
        one, zero = jnp.ones(()), jnp.zeros(())

        def rows(*values: Array) -> Array:
            return jnp.stack([*values, zero, zero, one]).reshape(3, 3)

        center = jnp.array([height / 2 - 0.5, width / 2 - 0.5])
        mirrored = jnp.where(self.horizontal_flip & (flip > 0), -1.0, 1.0)
        parts = (
            rows(one, zero, center[0], zero, one, center[1]),
            rows(jnp.cos(angle), -jnp.sin(angle), zero, jnp.sin(angle), jnp.cos(angle), zero),
            rows(
                one, zero, down * self.height_shift_range * height,
                zero, one, right * self.width_shift_range * width,
            ),
            rows(one, -jnp.sin(shear), zero, zero, jnp.cos(shear), zero),
            rows(1 + tall * self.zoom_range, zero, zero, zero, 1 + wide * self.zoom_range, zero),
            rows(one, zero, zero, zero, mirrored, zero),
            rows(one, zero, -center[0], zero, one, -center[1]),
        )  # fmt: skip
        return jnp.linalg.multi_dot([*parts], precision="highest")[:2]


@dataclass(frozen=True, kw_only=True)
class RandomCrop(Geometric):
    """Cuts a random window from an image, with its masks and boxes, padded on each side before.

    By default the padded crop of He et al. (2016, section 4.2), which shifts by up to `padding`
    pixels each way and fills with zeros. With a smaller `size` a network trains on windows;
    evaluation sees whole images, or slides windows over them (`jdl.tasks.sliding_windows`).
    """

    padding: int = 4  # pixels
    mode: Literal["constant", "edge", "reflect", "symmetric", "wrap"] = "constant"
    """Beyond the edges, as in `jax.numpy.pad`; `constant` is 0, `reflect` leaves the edge out."""
    mask_cval: int | None = None  # fill value of masks, such as the ignored class
    size: tuple[int, int] | None = None  # height and width of the window; None: the image's

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image cropped with its own key.

        Raises:
          UserError: the window is larger than the padded image.
        """

        if keys is None:
            return batch
        pad, images = self.padding, batch[self.name]
        size = self.size or (images.shape[1], images.shape[2])
        room = [n + 2 * pad - own for n, own in zip(images.shape[1:3], size, strict=True)]
        if min(room) < 0 or min(size) < 1:
            raise UserError(
                f"RandomCrop cannot cut {size[0]}x{size[1]} pixels from images of "
                f"{images.shape[1]}x{images.shape[2]} padded by {pad}: set a smaller size"
            )

        def offset(key: Array) -> Array:
            return jax.random.randint(key, (2,), 0, jnp.array(room) + 1)

        def pixels(key: Array, image: Array, is_mask: bool) -> Array:
            start = offset(key)
            widths = ((pad, pad), (pad, pad), (0, 0))
            if is_mask and self.mode == "constant" and pad:
                fill = mask_fill(self, self.mode, self.mask_cval)
                padded = jnp.pad(image, widths, constant_values=fill)
            else:
                padded = jnp.pad(image, widths, self.mode)
            return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), (*size, image.shape[2]))

        def matrix(key: Array, height: int, width: int) -> Array:
            del height, width
            return jnp.concatenate([jnp.eye(2), offset(key)[:, None] - jnp.float32(pad)], 1)

        return self.apply(batch, keys, pixels, matrix, size)


@dataclass(frozen=True, kw_only=True)
class RandomFlip(Geometric):
    """Flips half of the images horizontally, vertically, or half of them each way."""

    mode: Literal["horizontal", "vertical", "horizontal_and_vertical"] = "horizontal"

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image flipped or not by its own key."""
        if keys is None:
            return batch
        no = jnp.zeros(len(keys), bool)
        across = jax.vmap(jax.random.bernoulli)(keys) if self.mode != "vertical" else no
        down = no
        if self.mode != "horizontal":
            draw = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))
            down = draw(keys)
        return flip(self, batch, across, down)


@dataclass(frozen=True, kw_only=True)
class AlternatingFlip(Geometric):
    """Flips each image horizontally in every other epoch (Jordan, 2024, section 3.6).

    A hash of an example's index decides whether that is in the even or the odd epochs. Two epochs
    in a row then show every image both ways, where random flips show half of them one way twice.
    """

    needs_positions: ClassVar[bool] = True

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image flipped or not by its `index` and `epoch`."""
        if keys is None:
            return batch
        odd = (hash_bits(batch["index"]) ^ batch["epoch"].astype(jnp.uint32)) & 1
        return flip(self, batch, odd == 1, jnp.zeros(len(keys), bool))


def flip(fields: Geometric, batch: Batch, across: Array, down: Array) -> dict[str, Any]:
    """Returns a batch of which some images are flipped, with masks and boxes.

    Args:
      fields: names of the arrays.
      batch: with the arrays.
      across: (batch,) bool, flipped horizontally.
      down: (batch,) bool, flipped vertically.
    """

    def pixels(draw: tuple[Array, Array], image: Array, is_mask: bool) -> Array:
        del is_mask
        image = jnp.where(draw[0], image[:, ::-1], image)
        return jnp.where(draw[1], image[::-1], image)

    def matrix(draw: tuple[Array, Array], height: int, width: int) -> Array:
        last, flipped = jnp.array([height - 1.0, width - 1.0]), jnp.stack([draw[1], draw[0]])
        sign = jnp.where(flipped, -1.0, 1.0)
        return jnp.concatenate([jnp.diag(sign), jnp.where(flipped, last, 0.0)[:, None]], 1)

    return fields.apply(batch, (across, down), pixels, matrix)


def mask_fill(transform: Any, mode: str, value: int | None) -> int:
    """Returns the class that fills a mask beyond the edges.

    Raises:
      UserError: it is needed and not given.
    """
    if mode == "constant" and value is None:
        raise UserError(
            f"{type(transform).__name__} fills images beyond their edges with a constant and has "
            f"no class for their masks: set mask_cval to the ignored class, or another mode"
        )
    return value or 0


def hash_bits(numbers: Array) -> Array:
    """Returns a hash of each integer, uint32: the last step of MurmurHash3 (Appleby, 2011)."""
    bits = numbers.astype(jnp.uint32)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


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

        def one(key: Array, image: Array) -> Array:
            x, factors = image.astype(jnp.float32), jax.random.uniform(key, (3,), minval=-1.0)
            x = self._clip(x * (1 + self.brightness * factors[0]))
            mean = grayscale(x).mean()
            x = self._clip(mean + (x - mean) * (1 + self.contrast * factors[1]))
            luma = grayscale(x)
            return self._clip(luma + (x - luma) * (1 + self.saturation * factors[2]))

        return map_images(batch, keys, self.name, one)

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

        def cut(key: Array, image: Array) -> Array:
            inside = _random_box(key, image.shape, self.size, self.size)
            return jnp.where(inside, jnp.zeros((), image.dtype), image)

        return map_images(batch, keys, self.name, cut)


def _random_box(key: Array, shape: tuple[int, ...], tall: Array | int, wide: Array | int) -> Array:
    """Returns the mask (height, width, 1) of a box with a random center in an image."""
    height, width = shape[:2]
    row, column = jax.random.uniform(key, (2,)) * jnp.array([height, width])
    rows = jnp.abs(jnp.arange(height) + 0.5 - row) < tall / 2
    columns = jnp.abs(jnp.arange(width) + 0.5 - column) < wide / 2
    return rows[:, None, None] & columns[:, None]


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixes each image and label with its neighbor in the batch (Zhang et al., 2018).

    Labels (batch,) become class weights (batch, classes) float32, images float32; labels of that
    shape, as of several classes per example, are mixed as they are.
    """

    num_classes: int = 10  # number of classes
    alpha: float = 0.2  # mixing weights follow Beta(alpha, alpha)
    name: str = "image"  # of the array (batch, ...)
    label: str = "label"  # of the array (batch,) or (batch, classes)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each pair mixed with the key of its first image."""
        if keys is None:
            return batch
        images_only(batch, self)
        share = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(keys)
        images = batch[self.name].astype(jnp.float32)
        each = share.reshape(-1, *[1] * (images.ndim - 1))
        mixed = each * images + (1 - each) * roll_rows(images, 1)
        labels = _mix(batch[self.label], share, self.num_classes)
        return {**batch, self.name: mixed, self.label: labels}


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Pastes a box of its neighbor in the batch into each image (Yun et al., 2019).

    Labels (batch,) become class weights (batch, classes) float32, by area; labels of that shape
    are mixed as they are.
    """

    num_classes: int = 10  # number of classes
    alpha: float = 1.0  # kept areas follow Beta(alpha, alpha)
    name: str = "image"  # of the array (batch, height, width, channels)
    label: str = "label"  # of the array (batch,) or (batch, classes)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each pair mixed with the key of its first image."""
        if keys is None:
            return batch
        images_only(batch, self)
        images = batch[self.name]
        _, height, width, _ = images.shape

        def box(key: Array) -> Array:
            area, center = jax.random.split(key)
            side = jnp.sqrt(1 - jax.random.beta(area, self.alpha, self.alpha))
            return _random_box(center, (height, width), side * height, side * width)

        inside = jax.vmap(box)(keys)
        mixed = jnp.where(inside, roll_rows(images, 1), images)
        share = 1 - inside.astype(jnp.float32).mean((1, 2, 3))
        labels = _mix(batch[self.label], share, self.num_classes)
        return {**batch, self.name: mixed, self.label: labels}


def _mix(labels: Array, share: Array, classes: int) -> Array:
    each = jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels
    return share[:, None] * each + (1 - share[:, None]) * roll_rows(each, 1)
