"""Small residual network on CIFAR-10, by Muon: a fifth of ResNet-20's usual epochs.

    jdl prepare cifar10
    TFDS_DATA_DIR=DIR jdl train cifar10_resnet --seeds 3

He et al. (2016, section 4.2), with a fourth stage and twice the width: 10 layers, 32 to 256
channels. Kernels are optimized by Muon (Jordan, 2024), with a triangular schedule (Smith and
Topin, 2018); flips alternate (Jordan, 2024, arXiv:2404.00498).
"""

from jdl import Experiment
from jdl.data import TFDS, AlternatingFlip, Normalize, RandomCrop
from jdl.models import ResNet
from jdl.optimizers import Linear, Muon
from jdl.tasks import Classification

experiment = Experiment(
    model=ResNet(
        stage_sizes=(1, 1, 1, 1),
        num_filters=32,
        bottleneck=False,
        stem="small",
        shortcut="padding",
        num_classes=10,
    ),
    task=Classification(label_smoothing=0.1),
    data=TFDS(
        "cifar10",
        validation_fraction=0.0,
        device_transforms=(
            AlternatingFlip(),
            RandomCrop(padding=2, mode="reflect"),
            Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        ),
    ),
    optimizer=Muon(0.005, schedule=Linear(warmup=0.1)),
    epochs=16,
    batch_size=250,
)
