"""Transfer learning on MNIST: from the digits 0 to 4 to 5 to 9, with 100 labeled images.

    TFDS_DATA_DIR=DIR jdl train mnist_low_digits --workdir runs/mnist_low_digits
    TFDS_DATA_DIR=DIR jdl train mnist_transfer --seeds 3

The convolutions are frozen; the dense layers are initialized at random (Yosinski et al., 2014).
With ten epochs each this is 5.0 points above `mnist_few_digits`, with sixty 3.7 (0.943 and 0.906).

Expect: test accuracy 0.9321 (3 seeds, min 0.9185), 10.6 s, 2 busy cores of an AMD EPYC
"""

from mnist_few_digits import experiment as scratch

import jdl
from jdl.pretrained import InitFrom

experiment = jdl.override(
    scratch,
    {
        "init_from": InitFrom(run="runs/mnist_low_digits", skip=("Dense_0", "logits")),
        "optimizer.frozen": ("Conv_0", "Conv_1", "Conv_2"),
    },
)
