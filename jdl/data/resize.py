"""Host transforms that bring images, with their masks and boxes, to one size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data.geometry import Geometric, visible
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Resize(Geometric):
    """Host: scales an image (height, width, channels) uint8 to a fixed size, bilinearly.

    Masks take the nearest pixel, boxes are scaled.
    """

    height: int = 150  # pixels
    width: int = 150  # pixels

    def __post_init__(self) -> None:
        _check_size(self, self.height, self.width)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with the image resized."""
        height, width = np.shape(example[self.name])[:2]
        return resize_window(self, example, (0, 0, height, width), self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Geometric):
    """Host: scales a random window of an image to a fixed size (Szegedy et al., 2015).

    In training the window has a share of the image's area in `scale` and a ratio of width to height
    in `ratio`, both as in torchvision; each epoch has another window of every image. In evaluation
    and prediction it is the square in the center whose side is `crop_fraction` of the shorter side:
    of 224 pixels, the usual resizing to 256 and central crop. Masks and boxes move alike.
    """

    height: int = 224  # pixels
    width: int = 224  # pixels
    scale: tuple[float, float] = (0.08, 1.0)  # least and largest share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # least and largest width / height
    crop_fraction: float = 0.875  # of the shorter side, in evaluation

    def __post_init__(self) -> None:
        _check_size(self, self.height, self.width)
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise UserError(
                    f"RandomResizedCrop.{name} is a range of numbers above 0"
                    f"{' up to 1' if most == 1 else ''}, not {(low, high)}"
                )
        if not 0 < self.crop_fraction <= 1:
            raise UserError(
                f"RandomResizedCrop.crop_fraction must be in (0, 1], not {self.crop_fraction}"
            )

    def random_map(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the example with a random window of the image."""
        window = self._window(rng, *np.shape(example[self.name])[:2])
        return resize_window(self, example, window, self.height, self.width)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with the center of the image."""
        height, width = np.shape(example[self.name])[:2]
        # The largest window of the output's aspect, of which `crop_fraction` is kept.
        unit = self.crop_fraction * min(height / self.height, width / self.width)
        tall, wide = max(1, round(unit * self.height)), max(1, round(unit * self.width))
        window = ((height - tall) // 2, (width - wide) // 2, tall, wide)
        return resize_window(self, example, window, self.height, self.width)

    def _window(
        self, rng: np.random.Generator, height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Returns top, left, height and width; after ten failures the largest central window."""
        low, high = np.log(self.ratio)
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < tall <= height and 0 < wide <= width:
                top = int(rng.integers(height - tall + 1))
                return top, int(rng.integers(width - wide + 1)), tall, wide
        tall = min(height, max(1, round(width / self.ratio[0])))
        wide = min(width, max(1, round(height * self.ratio[1])))
        return (height - tall) // 2, (width - wide) // 2, tall, wide


def resize_window(
    fields: Geometric,
    example: Mapping[str, Any],
    window: tuple[int, int, int, int],
    height: int,
    width: int,
) -> dict[str, Any]:
    """Scales a window of an example's image, masks and boxes.

    Args:
      fields: names of the arrays.
      example: `boxes` (n, 4) in pixels need not be padded. Those that are invisible are marked in
        `boxes_mask`.
      window: top, left, height and width in pixels.
      height, width: of the result.

    Raises:
      UserError: a mask has another size than the image.
    """
    top, left, tall, wide = window
    image = np.asarray(example[fields.name])
    found = {**example, fields.name: _resize(image, window, height, width)}
    rows = top + ((np.arange(height) + 0.5) * tall / height).astype(int)
    columns = left + ((np.arange(width) + 0.5) * wide / width).astype(int)
    for name in fields.masks:
        if name in example:
            mask = np.asarray(example[name])
            if mask.shape[:2] != image.shape[:2]:
                raise UserError(
                    f"{name!r} has {mask.shape[0]}x{mask.shape[1]} pixels, the image "
                    f"{image.shape[0]}x{image.shape[1]}: give both the same size"
                )
            found[name] = mask[rows[:, None], columns]
    if fields.boxes in example:
        boxes = np.asarray(example[fields.boxes], np.float32).reshape(-1, 4)
        corner, scale = np.array([left, top] * 2), np.array([width / wide, height / tall] * 2)
        moved = ((boxes - corner) * scale).astype(np.float32)
        kept = np.asarray(example.get(fields.boxes_mask, np.ones(len(boxes), bool)))
        clipped = np.clip(moved, 0, np.array([width, height] * 2, np.float32))
        found[fields.boxes_mask] = kept & visible(moved, clipped, fields.min_visibility)
        found[fields.boxes] = clipped
    return found


def _resize(
    image: np.ndarray, window: tuple[int, int, int, int], height: int, width: int
) -> np.ndarray:
    from PIL import Image

    top, left, tall, wide = window
    gray = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if gray else image)
    box = (left, top, left + wide, top + tall)
    small = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return small[..., None] if gray else small


def _check_size(transform: Any, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise UserError(f"{type(transform).__name__} needs a positive size, not {height}x{width}")
