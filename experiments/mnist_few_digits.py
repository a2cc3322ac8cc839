"""CNN on 100 images of the digits 5 to 9, from scratch: what `mnist_transfer` is compared with.

TFDS_DATA_DIR=DIR jdl train mnist_few_digits --seeds 3
"""

import dataclasses

from mnist_cnn import experiment as cnn

from jdl.data import Scale, Selection

experiment = dataclasses.replace(
    cnn,
    model=cnn.model.clone(outputs=5),
    data=Selection(cnn.data, classes=(5, 6, 7, 8, 9), examples=100, device_transforms=(Scale(),)),
    epochs=None,
    steps=300,
    batch_size=20,
    malloc_arenas=0,
)
