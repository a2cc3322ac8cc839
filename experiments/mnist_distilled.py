"""Distillation on MNIST: a CNN of 7,036 weights learns from `mnist_cnn` (Hinton et al., 2015).

    TFDS_DATA_DIR=DIR jdl train mnist_cnn --workdir runs/mnist_cnn
    TFDS_DATA_DIR=DIR jdl train mnist_distilled --seeds 3

It also learns the attention maps of the teacher's second block. Without the teacher, 0.9828:
`--task classification`.

Expect: test accuracy 0.9838 (3 seeds, min 0.9834), 36 s, 1 busy core of an Intel Xeon
"""

import dataclasses

from mnist_cnn import experiment as cnn

from jdl.models import CNN
from jdl.tasks import Distillation, Frozen

experiment = dataclasses.replace(
    cnn,
    model=CNN(channels=(4, 8), dense=(16,), batch_norm=True),
    task=Distillation(
        teacher=Frozen(cnn.model, name="teacher", run="runs/mnist_cnn"),
        features=(("BatchNorm_1", "BatchNorm_1"),),
        loss_terms=(("supervised", 0.1), ("distillation", 0.9), ("features", 0.5)),
    ),
)
