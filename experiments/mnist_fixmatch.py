"""FixMatch on MNIST with 100 labels (Sohn et al., 2020).

    TFDS_DATA_DIR=DIR jdl train mnist_fixmatch --seeds 3

Digits are not flipped. The labels alone, with the weak augmentation, are `--task.loss-terms.1.1 0`.
"""

from jdl import Experiment, Runtime
from jdl.data import (
    TFDS,
    Cutout,
    Mixture,
    OnViews,
    RandomAffine,
    Scale,
    Selection,
    Stream,
    Views,
)
from jdl.models import CNN
from jdl.optimizers import SGD, Cosine
from jdl.tasks import FixMatch

mnist = TFDS("mnist")
few = Selection(mnist, classes=tuple(range(10)), num_examples=100)
streams = Stream("labeled", few), Stream("unlabeled", mnist, weight=7, names=("image",))
weak = RandomAffine(width_shift_range=0.08, height_shift_range=0.08, fill_mode="constant")
strong = RandomAffine(
    rotation_range=30.0,
    width_shift_range=0.15,
    height_shift_range=0.15,
    shear_range=25.0,
    zoom_range=0.25,
    fill_mode="constant",
)
transforms = Scale(), Views(2), weak, OnViews(strong), OnViews(Cutout(size=10))
experiment = Experiment(
    model=CNN(channels=(32, 64), dense=(128,), batch_norm=True),
    task=FixMatch(),
    data=Mixture(streams, device_transforms=transforms),
    optimizer=SGD(
        0.03, momentum=0.9, nesterov=True, schedule=Cosine(), weight_decay=5e-4, ema_decay=0.995
    ),
    steps=4000,
    batch_size=128,
    precision="bf16",
    runtime=Runtime(malloc_arenas=0),
)
