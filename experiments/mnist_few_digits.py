"""CNN on 100 images of the digits 5 to 9, from scratch: the baseline of `mnist_transfer`.

TFDS_DATA_DIR=DIR jdl train mnist_few_digits --seeds 3

Expect: test accuracy 0.8821 (3 seeds, min 0.8731), 10.0 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from mnist_low_digits import experiment as low

from jdl import Runtime
from jdl.data import Scale

experiment = dataclasses.replace(
    low,
    data=dataclasses.replace(
        low.data, classes=(5, 6, 7, 8, 9), num_examples=100, device_transforms=(Scale(),)
    ),
    epochs=10,
    batch_size=20,
    runtime=Runtime(malloc_arenas=0),
)
