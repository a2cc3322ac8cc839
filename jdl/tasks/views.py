"""Views of examples: those that a task learns from, and those over which evaluation averages."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.typing import Batch

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class View:
    """An image or a window of it, mirrored, shifted, or as it is, with its weight in the mean."""

    mirror: bool = False  # flip left and right, before the shift
    flip: bool = False  # flip up and down, before the shift
    shift: tuple[int, int] = (0, 0)  # pixels down and to the right; the edges are reflected
    window: tuple[int, int, int, int] | None = None
    """Top, left, height and width in pixels of the part of the image that is seen; None: all."""
    weight: float = 1.0  # in the mean, relative to the other views'
    name: str = "image"  # of the array (batch, height, width, channels)

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(f"the weight of a view is finite and above 0, not {self.weight}")

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with the view of each image.

        Raises:
          UserError: the window reaches beyond the image.
        """
        images = batch[self.name]
        if self.window is not None:
            top, left, height, width = self.window
            images = images[:, top : top + height, left : left + width]
            if min(top, left) < 0 or 0 in images.shape or images.shape[1:3] != (height, width):
                raise UserError(
                    f"the window {self.window} of a view reaches beyond images of "
                    f"{batch[self.name].shape[1]}x{batch[self.name].shape[2]} pixels"
                )
        images = self.undo(images)
        if any(self.shift):
            pads = [(max(pixels, 0), max(-pixels, 0)) for pixels in self.shift]
            wide = jnp.pad(images, ((0, 0), *pads, (0, 0)), "reflect")
            (top, left), (height, width) = [after for _, after in pads], images.shape[1:3]
            images = wide[:, top : top + height, left : left + width]
        return {**batch, self.name: images}

    def undo(self, outputs: Array) -> Array:
        """Mirrors and flips (batch, height, width, ...) back."""
        outputs = outputs[:, :, ::-1] if self.mirror else outputs
        return outputs[:, ::-1] if self.flip else outputs


MIRROR = (View(), View(mirror=True))
"""The image and its mirror image."""

MIRROR_AND_FLIP = (View(), View(mirror=True), View(flip=True), View(mirror=True, flip=True))
"""Also both upside down, for pictures without an up, such as those of a microscope."""

MIRROR_AND_SHIFT = (
    View(),
    View(mirror=True),
    View(shift=(1, 1), weight=0.5),
    View(shift=(1, 1), mirror=True, weight=0.5),
    View(shift=(-1, -1), weight=0.5),
    View(shift=(-1, -1), mirror=True, weight=0.5),
)
"""Both, half of the weight on them shifted by a pixel along the diagonal (Jordan, 2024, 3.5)."""


def sliding_windows(
    image_size: tuple[int, int],
    window_size: tuple[int, int],
    overlap: float = 0.25,
    views: Sequence[View] = (View(),),
) -> tuple[View, ...]:
    """Returns views that see an image through windows, for networks trained on parts of images.

    Windows are evenly spaced, as few as overlap by at least that share; the outermost touch the
    edges.

    Args:
      image_size: height and width of images, in pixels.
      window_size: of the windows, no larger.
      overlap: least share of a window's side that the next one sees, too; below 1.
      views: of each window, such as `MIRROR`.

    Raises:
      UserError: the windows are larger than the image, or the overlap is no such share.
    """
    if not 0 <= overlap < 1 or any(
        not 0 < own <= whole for own, whole in zip(window_size, image_size, strict=True)
    ):
        raise UserError(
            f"sliding_windows needs windows within images of {image_size} and an overlap in "
            f"[0, 1), not {window_size} and {overlap}"
        )
    starts = []
    for whole, own in zip(image_size, window_size, strict=True):
        count = 1 + math.ceil((whole - own) / max(1, math.floor(own * (1 - overlap))))
        starts.append(np.linspace(0, whole - own, count).round().astype(int).tolist())
    return tuple(
        dataclasses.replace(view, window=(top, left, *window_size))
        for top, left in itertools.product(*starts)
        for view in views
    )


def check_dense(views: Sequence[View], *, windows: bool) -> None:
    """Raises a UserError for views whose outputs cannot be put back, cell by cell.

    Args:
      views: of a task with an output for each cell of the image.
      windows: whether outputs of parts of images can.
    """
    for view in views:
        if any(view.shift):
            raise UserError(
                f"task.views has the shift {view.shift}, where a task with an output for each "
                f"pixel averages mirrored and flipped views: leave it out"
            )
        if view.window is not None and not windows:
            raise UserError(
                f"task.views has the window {view.window}, at whose edges objects are cut: "
                f"detection sees whole images"
            )


def average_pixels(views: Sequence[View], outputs: Sequence[Array], size: tuple[int, int]) -> Array:
    """Averages an output for each pixel over the views that see the pixel.

    Args:
      views: without shifts.
      outputs: of each view, (batch, height, width, features), as large as the view.
      size: height and width of the images.

    Raises:
      UserError: a pixel is in no view.
    """
    seen, total = np.zeros(size, np.float32), jnp.zeros(())
    for view, own in zip(views, outputs, strict=True):
        top, left, height, width = view.window or (0, 0, *size)
        seen[top : top + height, left : left + width] += view.weight
        below, right = size[0] - top - height, size[1] - left - width
        own = view.weight * view.undo(own)
        total += jnp.pad(own, ((0, 0), (top, below), (left, right), (0, 0)))
    if not seen.all():
        y, x = np.argwhere(seen == 0)[0]
        raise UserError(f"task.views leaves out pixel ({y}, {x}) of images of {size}: cover all")
    return total / seen[..., None]


def training_view(batch: Batch, names: Sequence[str], view: int) -> dict[str, Any]:
    """Returns a batch with one of two views of each example, made by the transform `Views(2)`.

    Args:
      batch: its arrays `names` are (batch, 2, ...).
      names: of arrays of the batch.
      view: 0 or 1.

    Raises:
      UserError: an array has no two views.
    """
    for name in names:
        shape = batch[name].shape
        if len(shape) < 3 or shape[1] != 2:
            known = "" if names == ("image",) else f", names={tuple(names)}"
            raise UserError(
                f"the task learns from two views of each example, where {name!r} has shape "
                f"{shape[1:]}: add Views(2{known}) to data.device_transforms, before augmentation"
            )
    return {**batch, **{name: batch[name][:, view] for name in names}}
