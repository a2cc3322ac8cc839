"""Detection of digits that are pasted on a canvas: boxes and classes, by centers.

    jdl train digits_detection

Scenes of 48x48 pixels with up to five of scikit-learn's digits, 8 or 16 pixels high, on noise; none
is in two splits. Mosaics, rotations, shifts and zooms move the boxes alike.
"""

from dataclasses import dataclass

import numpy as np

from jdl import Experiment
from jdl.data import Data, Digits, Mosaic, Pad, RandomAffine, Scale
from jdl.models import UNet
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import Detection


@dataclass(frozen=True, kw_only=True)
class Canvas(Data):
    """Scenes of digits with `boxes`, `labels` and a mask: 0 background, digit + 1, 255 faint."""

    scenes: tuple[int, ...] = (2000, 300, 500)  # of train, validation and test

    def load(self):
        """Returns the scenes of each split."""
        digits, rng = Digits().splits(), np.random.default_rng(0)
        parts = zip(("train", "validation", "test"), self.scenes, strict=True)
        return {name: [scene(digits[name], rng) for _ in range(count)] for name, count in parts}

    def full_name(self):
        """Name and version."""
        return "digits_canvas:1"


def scene(digits, rng):
    """Returns an example with one to five digits that do not overlap."""
    image = rng.integers(0, 5, (48, 48, 1), np.uint8)
    mask, boxes, labels = np.zeros_like(image), [], []
    for one in [digits[int(rng.integers(len(digits)))] for _ in range(rng.integers(1, 6))]:
        ink = np.kron(one["image"], np.ones((rng.integers(1, 3),) * 2 + (1,), np.uint8))
        y, x = rng.integers(0, 49 - len(ink), 2)
        place = np.s_[y : y + len(ink), x : x + len(ink)]
        if not mask[place].any():
            image[place] = np.maximum(image[place], ink)
            mask[place] = np.where(ink > 7, one["label"] + 1, np.where(ink > 0, 255, 0))
            ends = [end(np.argwhere(ink[..., 0]), 0)[::-1] for end in (np.min, np.max)]
            boxes.append([x + ends[0][0], y + ends[0][1], x + ends[1][0] + 1, y + ends[1][1] + 1])
            labels.append(one["label"])
    return {"image": image, "segmentation_mask": mask, "boxes": boxes, "labels": labels}


move = RandomAffine(
    rotation_range=10, zoom_range=0.2, fill_mode="constant", mask_cval=255, min_visibility=0.5
)
mosaic = Mosaic(min_visibility=0.5)
experiment = Experiment(
    UNet(channels=(16, 32, 64), features=14, stride=2),
    task=Detection(num_classes=10, coco=("test",)),
    data=Canvas(transforms=(Pad(5),), device_transforms=(mosaic, move, Scale(divisor=16.0))),
    optimizer=AdamW(3e-3, schedule=Cosine(warmup=0.05), weight_decay=1e-3),
    epochs=30,
)
