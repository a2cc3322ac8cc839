"""CNN on the digits 0 to 4 of MNIST: what `mnist_transfer` begins with.

TFDS_DATA_DIR=DIR jdl train mnist_low_digits --workdir runs/mnist_low_digits
"""

import dataclasses

from mnist_cnn import experiment as cnn

from jdl.data import Scale, Selection

experiment = dataclasses.replace(
    cnn,
    model=cnn.model.clone(outputs=5),
    data=Selection(cnn.data, classes=(0, 1, 2, 3, 4), device_transforms=(Scale(),)),
    epochs=3,
)
