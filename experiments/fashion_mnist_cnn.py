"""The CNN of `mnist_cnn` on Fashion-MNIST (Xiao et al., 2017).

    jdl prepare fashion_mnist
    TFDS_DATA_DIR=DIR jdl train fashion_mnist_cnn --seeds 3

Not run on Fashion-MNIST itself; the tests train it on synthetic data of the same shape.
"""

import dataclasses

from mnist_cnn import experiment as mnist

from jdl.data import TFDS, RandomCrop, RandomFlip, Scale

experiment = dataclasses.replace(
    mnist,
    data=TFDS(
        "fashion_mnist",
        validation_fraction=0.0,
        device_transforms=(RandomCrop(padding=2), RandomFlip(), Scale()),
    ),
    epochs=20,
)
