"""CNN on the digits 0 to 4 of MNIST, with random shifts: pretraining for `mnist_transfer`.

TFDS_DATA_DIR=DIR jdl train mnist_low_digits --workdir runs/mnist_low_digits

Expect: test accuracy 0.9977 (1 seed, min 0.9977), 85.5 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from mnist_cnn import experiment as cnn

from jdl.data import RandomAffine, Scale, Selection
from jdl.models import CNN

augment = RandomAffine(
    rotation_range=20,
    width_shift_range=0.1,
    height_shift_range=0.1,
    shear_range=15,
    zoom_range=0.2,
)

experiment = dataclasses.replace(
    cnn,
    model=CNN(channels=(16, 32, 64), dense=(128,), num_classes=5, dropout_rate=0.3),
    data=Selection(cnn.data, classes=(0, 1, 2, 3, 4), device_transforms=(augment, Scale())),
    epochs=4,
)
