"""A tiny CNN that tells in which of three corners an image is bright."""

import numpy as np

from jdl import Experiment
from jdl.data import Arrays
from jdl.hooks import Checkpoint
from jdl.models import CNN
from jdl.optimizers import Adam
from jdl.parallel import Single


def corners(count, seed):
    """Images with noise, and a bright corner in one of three places: the class."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.2, (count, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 3, count).astype(np.int32)
    for image, label in zip(images, labels, strict=True):
        y, x = ((0, 0), (0, 5), (5, 0))[label]
        image[y : y + 3, x : x + 3] += 0.8
    return {"image": images, "label": labels}


experiment = Experiment(
    model=CNN(channels=(4,), dense=(), num_classes=3),
    data=Arrays({"train": corners(96, 0), "validation": corners(30, 1)}),
    optimizer=Adam(1e-2),
    strategy=Single(),
    hooks=(Checkpoint(every=20, keep=3),),
    steps=60,
    batch_size=16,
)
