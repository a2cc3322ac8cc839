"""Views of images over which evaluation averages: test-time augmentation."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from jdl.errors import UserError
from jdl.typing import Batch


@dataclass(frozen=True, kw_only=True)
class View:
    """An image mirrored, shifted, or as it is, with its weight in the mean over the views."""

    mirror: bool = False  # flip left and right, before the shift
    shift: tuple[int, int] = (0, 0)  # pixels down and to the right; the edges are reflected
    weight: float = 1.0  # in the mean, relative to the other views'
    name: str = "image"  # of the array (batch, height, width, channels)

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(f"the weight of a view is finite and above 0, not {self.weight}")

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with the view of each image."""
        images = batch[self.name]
        if self.mirror:
            images = images[:, :, ::-1]
        if any(self.shift):
            pads = [(max(pixels, 0), max(-pixels, 0)) for pixels in self.shift]
            wide = jnp.pad(images, ((0, 0), *pads, (0, 0)), "reflect")
            (top, left), (height, width) = [after for _, after in pads], images.shape[1:3]
            images = wide[:, top : top + height, left : left + width]
        return {**batch, self.name: images}


MIRROR = (View(), View(mirror=True))
"""The image and its mirror image."""

MIRROR_AND_SHIFT = (
    View(),
    View(mirror=True),
    View(shift=(1, 1), weight=0.5),
    View(shift=(1, 1), mirror=True, weight=0.5),
    View(shift=(-1, -1), weight=0.5),
    View(shift=(-1, -1), mirror=True, weight=0.5),
)
"""Both, half of the weight on them shifted by a pixel along the diagonal (Jordan, 2024, 3.5)."""
