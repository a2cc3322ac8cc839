"""Host transforms of boxes, and of other lists whose length differs between examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jdl.data.sources import flatten
from jdl.errors import UserError

BoxFormat = Literal[
    "xyxy", "xywh", "center_xywh", "yxyx", "rel_xyxy", "rel_yxyx", "rel_center_xywh"
]
"""Coordinates of a box: corners x0 y0 x1 y1 or y0 x0 y1 x1; the left upper corner, or the center,
with width and height; in pixels, or as shares of the image's size (`rel_`)."""


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Host: pads arrays to `size` items along axis 0, and adds a mask of the items.

    `Pad(20, names=("boxes", "labels"))` pads both to 20 items and adds `boxes_mask` (20,) bool,
    False for padding. Items whose mask is False already, such as boxes that a crop dropped, are
    left out first. An example without any of the arrays, as in prediction, is left as it is.
    """

    size: int = field(kw_only=False)  # items of each example; more are an error
    names: tuple[str, ...] = ("boxes", "labels")  # of arrays of equal length; nested: a/b
    value: float = 0.0  # of padding

    def __post_init__(self) -> None:
        if self.size < 1 or not self.names:
            raise UserError(
                f"Pad needs a size of at least 1 and names, not {self.size} and {self.names}"
            )

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with the arrays padded.

        Raises:
          UserError: they differ in length, or have more items than `size`.
        """
        example = flatten(example)
        if not any(name in example for name in self.names):
            return example
        mask_name, first = f"{self.names[0]}_mask", self.names[0]
        if missing := [name for name in self.names if name not in example]:
            known = ", ".join(map(repr, example))
            raise UserError(f"Pad finds no array {missing[0]!r} (there are {known})")
        mask = np.asarray(example.get(mask_name, np.ones(len(example[first]), bool)))
        for name in self.names:
            array = np.asarray(example[name])
            if array.ndim == 0 or len(array) != len(mask):
                raise UserError(
                    f"{name!r} has shape {array.shape}, where {first!r} has {len(mask)} items: "
                    f"give each of Pad.names an item for each of them"
                )
            array = array[mask]
            if len(array) > self.size:
                raise UserError(
                    f"{name!r} has {len(array)} items, more than the {self.size} of Pad: raise "
                    f"its size"
                )
            widths = [(0, self.size - len(array)), *[(0, 0)] * (array.ndim - 1)]
            example[name] = np.pad(array, widths, constant_values=array.dtype.type(self.value))
        return {**example, mask_name: np.arange(self.size) < mask.sum()}


@dataclass(frozen=True, kw_only=True)
class ConvertBoxes:
    """Host: brings boxes to `boxes` (n, 4) float32, x0 y0 x1 y1 in pixels, and checks them.

    `ConvertBoxes("rel_yxyx", boxes="objects/bbox", labels="objects/label")` reads those of TFDS.
    A box that reaches over the edge of the image is clipped. One that is inverted, empty, or
    outside of the image is an error, or left out with `invalid="drop"`.
    """

    source: BoxFormat = field(kw_only=False)  # their format
    boxes: str = "objects/bbox"  # name of the boxes (n, 4)
    labels: str = "objects/label"  # name of their classes (n,)
    image: str = "image"  # name of the image, whose size they need
    invalid: Literal["error", "drop"] = "error"  # what to do with a box that is none

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with `boxes` and `labels` int32 in place of the given arrays.

        Raises:
          UserError: a box is invalid.
        """
        example = flatten(example)
        if self.boxes not in example:
            return example
        height, width = np.shape(example[self.image])[:2]
        boxes = to_corners(example.pop(self.boxes), self.source, height, width)
        labels = np.asarray(example.pop(self.labels), np.int32).reshape(-1)
        boxes, kept = valid_boxes(boxes, height, width)
        if self.invalid == "error" and not kept.all():
            index = int(np.argmin(kept))
            raise UserError(
                f"box {index} is {box_fault(boxes[index], height, width)}: correct it, or set "
                f"ConvertBoxes.invalid to drop"
            )
        return {**example, "boxes": boxes[kept].astype(np.float32), "labels": labels[kept]}


def to_corners(boxes: Any, source: BoxFormat, height: int, width: int) -> np.ndarray:
    """Returns boxes (n, 4) in another format as x0, y0, x1, y1 in pixels, float64."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    size = np.array([width, height] * 2, float)
    kind = source.removeprefix("rel_")
    if kind == "yxyx":
        boxes, kind = boxes[:, [1, 0, 3, 2]], "xyxy"
    if source.startswith("rel_"):
        boxes = boxes * size
    if kind != "xyxy":
        start = boxes[:, :2] - (boxes[:, 2:] / 2 if kind == "center_xywh" else 0)
        boxes = np.concatenate([start, start + boxes[:, 2:]], 1)
    return boxes


def from_corners(boxes: np.ndarray, target: BoxFormat, height: int, width: int) -> np.ndarray:
    """Returns boxes (n, 4) of x0, y0, x1, y1 in pixels in another format, float64."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    kind = target.removeprefix("rel_")
    if kind.endswith("xywh"):
        sides = boxes[:, 2:] - boxes[:, :2]
        start = boxes[:, :2] + (sides / 2 if kind == "center_xywh" else 0)
        boxes = np.concatenate([start, sides], 1)
    if target.startswith("rel_"):
        boxes = boxes / np.array([width, height] * 2, float)
    return boxes[:, [1, 0, 3, 2]] if kind == "yxyx" else boxes


def valid_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes clipped to the image, and whether each is valid, (n,) bool.

    Those that are not are left as they are; see `box_fault`.
    """
    kept = np.array([not box_fault(box, height, width) for box in boxes], bool)
    clipped = np.clip(boxes, 0, np.array([width, height] * 2))
    return np.where(kept[:, None], clipped, boxes), kept


def box_fault(box: np.ndarray, height: int, width: int) -> str:
    """Returns what is wrong with a box (4,), or an empty string."""
    x0, y0, x1, y1 = box.tolist()
    if not np.isfinite(box).all():
        what = "not finite"
    elif x1 < x0 or y1 < y0:
        what = "inverted"
    elif x1 == x0 or y1 == y0:
        what = "empty"
    elif x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        what = f"outside of the image of {width}x{height} pixels"
    else:
        return ""
    return f"{what} (x0={x0:g}, y0={y0:g}, x1={x1:g}, y1={y1:g})"
