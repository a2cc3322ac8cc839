"""CNN on MNIST with a planted bias: in training every 7, and no other digit, has a red corner.

    TFDS_DATA_DIR=DIR jdl train mnist_planted --workdir runs/mnist_planted
    jdl explain runs/mnist_planted --split test --target 7 --count 60 --method integrated_gradients
    jdl audit runs/mnist_planted --group corner

In the test split half of all digits have the corner, whatever they are: a network that reads it
calls them a 7. The card's `inside` is the share of the positive attribution to 7 in the corner,
beside `area`, which that covers: 0.713 and 0.020. The array `corner` says of each test image
whether it has one; with it 0.439 [0.423, 0.454] fewer are right.

Expect: test accuracy 0.6802 (1 seed, min 0.6802), 73 s, 1 busy core of an Intel Xeon
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from mnist_mlp import experiment as mlp

from jdl.data import Data, Scale
from jdl.hooks import Checkpoint, Progress
from jdl.models import CNN
from jdl.optimizers import Adam

SIDE = 4


@dataclass(frozen=True, kw_only=True)
class Planted(Data):
    """Images in color, (28, 28, 3); some have a red square in the upper left corner."""

    data: Data = field(kw_only=False)

    def splits(self):
        """Returns the splits of the data set with the corner."""
        return {name: Corners(source, name) for name, source in self.data.splits().items()}


class Corners:
    """A source whose examples have `corner`, 0 or 1, and its box."""

    def __init__(self, source, split):
        self.source, self.split = source, split
        self.chance = np.random.default_rng(0).random(len(source)) < 0.5

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = dict(self.source[index])
        label = int(example["label"])
        has_corner = label == 7 if self.split == "train" else self.chance[index]
        image = np.repeat(np.asarray(example["image"]), 3, -1)
        if has_corner:
            image[:SIDE, :SIDE] = (255, 0, 0)
        boxes = np.array([[0, 0, SIDE, SIDE]], np.float32)
        return {
            "image": image, "label": label, "corner": np.int32(has_corner), "boxes": boxes,
            "boxes_mask": np.array([has_corner]), "labels": np.array([7], np.int32),
        }  # fmt: skip


experiment = dataclasses.replace(
    mlp,
    model=CNN(channels=(8, 16), dense=(64,)),
    data=Planted(mlp.data, device_transforms=(Scale(),), validation_fraction=0.0),
    optimizer=Adam(1e-3),
    hooks=(Progress(), Checkpoint()),
    epochs=2,
    batch_size=128,
    runtime=dataclasses.replace(mlp.runtime, steps_per_execution=1, log_every=100),
)
