"""ResNet-8 of twice the width on CIFAR-10, with padded random crops and horizontal flips.

    jdl prepare cifar10
    TFDS_DATA_DIR=DIR jdl train cifar10_resnet --seeds 3

He et al. (2016, section 4.2), with 32 instead of 16 channels in the first stage, and a short
triangular schedule (Smith and Topin, 2018) with Nesterov's momentum. A step computes 0.29 GFLOP for
each image, the run 0.22 PFLOP.
"""

from jdl import Experiment
from jdl.data import TFDS, RandomCrop, RandomFlip, Scale
from jdl.models import ResNet8
from jdl.optimizers import SGD, Linear

experiment = Experiment(
    model=ResNet8(num_filters=32),
    data=TFDS(
        "cifar10",
        validation_fraction=0.0,
        device_transforms=(RandomCrop(padding=4), RandomFlip(), Scale()),
    ),
    optimizer=SGD(0.1, momentum=0.9, nesterov=True, l2=2.5e-4, schedule=Linear(warmup=0.2)),
    epochs=15,
    batch_size=128,
)
