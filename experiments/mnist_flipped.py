"""CNN on MNIST of which one label in a hundred is wrong, for TracIn to find.

    TFDS_DATA_DIR=DIR jdl train mnist_flipped --workdir runs/mnist_flipped
    jdl explain runs/mnist_flipped --count 1 --without-cards \\
        --method trac_in of_rows=false marked=flipped examples=60000

The second command prints with which average precision the influence of training examples on
themselves (Pruthi et al., 2020) ranks the wrong labels, and with which their loss does: 0.952 and
0.919 (seed 0, 2 busy cores of an Intel Xeon). The network has begun to learn wrong labels by heart,
so that its last loss misses some; after 5 epochs it is the better, 0.977, and influence has 0.845.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from mnist_mlp import experiment as mlp

from jdl.data import Data, Scale
from jdl.hooks import Checkpoint, Progress
from jdl.models import CNN
from jdl.optimizers import Adam

SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Flipped(Data):
    """Training images of which some have a random other label; `flipped` says which."""

    data: Data = field(kw_only=False)

    def splits(self):
        """Returns the splits of the data set, the labels of `train` changed."""
        splits = dict(self.data.splits())
        splits["train"] = Labels(splits["train"])
        return splits


class Labels:
    """A source whose examples have `flipped`, and where it is 1 another label."""

    def __init__(self, source):
        rng = np.random.default_rng(0)
        self.source, count = source, len(source)
        self.flipped = rng.random(count) < SHARE
        self.moved = rng.integers(1, 10, count)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example, flipped = dict(self.source[index]), self.flipped[index]
        if flipped:
            example["label"] = np.int32((int(example["label"]) + self.moved[index]) % 10)
        return {**example, "flipped": np.int32(flipped)}


experiment = dataclasses.replace(
    mlp,
    model=CNN(channels=(8, 16), dense=(64,)),
    data=Flipped(mlp.data, device_transforms=(Scale(),), validation_fraction=0.0),
    optimizer=Adam(1e-3),
    hooks=(Progress(), Checkpoint(every=1876, keep=5)),
    epochs=20,
    batch_size=128,
    runtime=dataclasses.replace(mlp.runtime, steps_per_execution=1, log_every=100),
)
