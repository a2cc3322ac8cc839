"""Geometry of images, masks of classes and boxes that move together.

A box is (x0, y0, x1, y1) in pixels from the upper left corner of the image, so that pixel (row,
column) covers `column <= x <= column + 1` and `row <= y <= row + 1`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from jdl.errors import UserError
from jdl.typing import Batch

Array = jax.Array

FillMode = Literal["nearest", "reflect", "constant", "wrap"]


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """Names of the arrays that a geometric transform moves; masks and boxes if there are any."""

    name: str = "image"  # of the images (height, width, channels)
    masks: tuple[str, ...] = ("segmentation_mask",)  # of class ids (height, width) or (..., 1)
    boxes: str = "boxes"  # of the boxes (n, 4) as x0, y0, x1, y1 in pixels
    min_visibility: float = 0.1  # a box of which a smaller share is left in the image is dropped

    @property
    def boxes_mask(self) -> str:
        """Name of the array (n,) bool that is False for boxes that are padding or dropped."""
        return f"{self.boxes}_mask"

    def apply(
        self,
        batch: Batch,
        draws: Any,
        pixels: Callable[[Any, Array, bool], Array],
        matrix: Callable[[Any, int, int], Array],
        size: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Returns a batch with images, masks and boxes moved.

        Args:
          batch: with the arrays.
          draws: a tree of arrays (batch, ...): what is random about each example, such as its key.
          pixels: returns an image, or a mask if its third argument is True, (height, width,
            channels).
          matrix: (draw, height, width) to (2, 3), from positions of pixels in the result to those
            in the image, by which the boxes move.
          size: height and width of the result; None: the images'.

        Raises:
          UserError: a mask has another size than the image, or the boxes are not padded.
        """
        height, width = batch[self.name].shape[1:3]
        found = {
            **batch,
            self.name: jax.vmap(lambda d, x: pixels(d, x, False))(draws, batch[self.name]),
        }
        for name in self.masks:
            if name in batch:
                found[name] = self._move_mask(batch[name], name, draws, pixels, (height, width))
        if self.boxes in batch:
            boxes, mask = padded_boxes(batch, self.boxes)

            def move(draw: Any, boxes: Array, mask: Array) -> tuple[Array, Array]:
                where = matrix(draw, height, width)
                return move_boxes(boxes, mask, where, size or (height, width), self.min_visibility)

            found[self.boxes], found[self.boxes_mask] = jax.vmap(move)(draws, boxes, mask)
        return found

    def _move_mask(
        self, mask: Array, name: str, draws: Any, pixels: Any, size: tuple[int, int]
    ) -> Array:
        if mask.shape[1:3] != size:
            raise UserError(
                f"{name!r} has {mask.shape[1]}x{mask.shape[2]} pixels, the images "
                f"{size[0]}x{size[1]}: give both the same size"
            )
        flat = mask.reshape(*mask.shape[:3], -1)
        moved = jax.vmap(lambda d, x: pixels(d, x, True))(draws, flat)
        return moved.reshape(*moved.shape[:3], *mask.shape[3:])


def padded_boxes(batch: Mapping[str, Any], name: str) -> tuple[Array, Array]:
    """Returns the boxes (batch, n, 4) and their mask (batch, n).

    Raises:
      UserError: there is no mask.
    """
    if f"{name}_mask" not in batch:
        raise UserError(
            f"the batch has {name!r} and no '{name}_mask', which marks padding: add "
            f'Pad(size=..., names=("{name}", ...)) to data.transforms'
        )
    return batch[name].astype(jnp.float32), batch[f"{name}_mask"].astype(bool)


def images_only(batch: Mapping[str, Any], transform: Any) -> None:
    """Raises a UserError if there are masks or boxes that a transform would leave behind."""
    for name in ("segmentation_mask", "boxes"):
        if name in batch:
            raise UserError(
                f"{type(transform).__name__} moves pixels of images and not {name!r}: use "
                f"RandomAffine, RandomFlip, RandomCrop or Mosaic, which move both"
            )


def resample(
    image: Array,
    matrix: Array,
    fill_mode: FillMode = "nearest",
    cval: float = 0,
    order: Literal[0, 1] = 1,
) -> Array:
    """Applies an affine map to an image, with bilinear interpolation or the nearest pixel.

    Equal to `scipy.ndimage.affine_transform(channel, matrix[:, :2], matrix[:, 2], order=order,
    mode=fill_mode, cval=cval)` for each channel.

    Args:
      image: (height, width, channels).
      matrix: (2, 3); `matrix @ (row, column, 1)` is the input position of an output pixel.
      fill_mode: beyond the edges, `nearest`: the pixel at the edge; `reflect`: mirrored, the edge
        twice; `wrap`: from the other side; `constant`: `cval`.
      cval: see `fill_mode`.
      order: 1: bilinear; 0: the nearest pixel, for classes.

    Returns:
      (height, width, channels), float32 or with `order=0` of the image's dtype.
    """
    height, width, _ = image.shape
    i, j = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    places = [row[0] * i + row[1] * j + row[2] for row in matrix]
    ends = (height - 1, width - 1)
    inside = [(place >= 0) & (place <= end) for place, end in zip(places, ends, strict=True)]
    if fill_mode == "wrap":  # as SciPy: the last pixel is the first again
        turned = [place % max(end, 1) for place, end in zip(places, ends, strict=True)]
        places = [jnp.where(*each) for each in zip(inside, places, turned, strict=True)]

    def interpolate(channel: Array) -> Array:
        mode = "reflect" if fill_mode == "reflect" else "nearest"
        return map_coordinates(channel, places, order=order, mode=mode)

    pixels = image.astype(jnp.float32) if order else image
    found = jax.vmap(interpolate, in_axes=2, out_axes=2)(pixels)
    if fill_mode == "constant":
        fill = jnp.asarray(cval, found.dtype)
        found = jnp.where((inside[0] & inside[1])[..., None], found, fill)
    return found


def move_boxes(
    boxes: Array,
    mask: Array,
    matrix: Array,
    size: tuple[int, int],
    min_visibility: float = 0.0,
) -> tuple[Array, Array]:
    """Moves boxes as `resample` moves the pixels that they enclose.

    The four corners are moved, and the box of the result is their axis-aligned hull, clipped to the
    image.

    Args:
      boxes: (n, 4) float32.
      mask: (n,) bool.
      matrix: (2, 3), from pixel positions (row, column) in the result to those in the image.
      size: height and width of the result.
      min_visibility: least share of the hull's area that is left in the image.

    Returns:
      The boxes, zeros where they are masked, and their mask.
    """
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
    corners = jnp.stack([jnp.stack([y, x]) for y in (y0, y1) for x in (x0, x1)], -1)  # (2, n, 4)
    (a, b), (c, d) = matrix[0, :2], matrix[1, :2]
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    # The center of a pixel is half a pixel from its edges, where boxes begin.
    offset = corners - 0.5 - matrix[:, 2, None, None]
    moved = jnp.einsum("ij,jnk->ink", inverse, offset, precision="highest") + 0.5
    hull = jnp.concatenate([moved.min(-1)[::-1], moved.max(-1)[::-1]]).T
    clipped = jnp.clip(hull, 0, jnp.array([size[1], size[0]] * 2, jnp.float32))
    kept = mask & visible(hull, clipped, min_visibility)
    return jnp.where(kept[:, None], clipped, 0), kept


def visible(boxes: Any, clipped: Any, min_visibility: float) -> Any:
    """Returns whether the clipped boxes (n, 4) have an area, and that share of the whole ones'."""
    whole, left = (
        (each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (boxes, clipped)
    )
    return (left > 0) & (left >= min_visibility * whole)
