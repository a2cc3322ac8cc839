"""The MLP of `mnist_mlp` with dropout of 0.5 on the hidden units.

    TFDS_DATA_DIR=DIR jdl train mnist_mlp_dropout --seeds 5

Srivastava et al. (2014). After five epochs it halves the gap between training and test, 0.980 to
0.972 where `mnist_mlp` has 0.990 to 0.975; it does not raise the test accuracy.

Expect: test accuracy 0.9720 (5 seeds, min 0.9702), 21.0 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from mnist_mlp import experiment as mlp

from jdl.models import MLP

experiment = dataclasses.replace(mlp, model=MLP(widths=(128,), dropout_rate=0.5))
