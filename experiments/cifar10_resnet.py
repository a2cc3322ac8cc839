"""ResNet-8 on CIFAR-10, with padded random crops and horizontal flips.

    jdl prepare cifar10
    TFDS_DATA_DIR=DIR jdl train cifar10_resnet --seeds 3

He et al. (2016, section 4.2), with momentum, weight decay and a cosine schedule. Not run on
CIFAR-10 itself; the tests train it on synthetic data of the same shape.
"""

from jdl import Experiment
from jdl.data import TFDS, RandomCrop, RandomFlip, Scale
from jdl.models import ResNet8
from jdl.optimizers import SGD, Cosine

experiment = Experiment(
    model=ResNet8(),
    data=TFDS(
        "cifar10",
        validation_fraction=0.0,
        device_transforms=(RandomCrop(padding=4), RandomFlip(), Scale()),
    ),
    optimizer=SGD(0.1, momentum=0.9, nesterov=True, l2=5e-5, schedule=Cosine(warmup=0.05)),
    epochs=50,
    batch_size=128,
)
