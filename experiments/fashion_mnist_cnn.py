"""The network of `mnist_cnn` on Fashion-MNIST (Xiao et al., 2017).

    jdl prepare fashion_mnist
    TFDS_DATA_DIR=DIR jdl train fashion_mnist_cnn --seeds 3

Not run on the set itself, which was not at hand; the tests train it on a stand-in of its shape.
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
