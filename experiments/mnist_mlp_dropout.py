"""The network of `mnist_mlp` with half of its hidden units dropped in training.

    TFDS_DATA_DIR=DIR jdl train mnist_mlp_dropout --seeds 5

Srivastava et al. (2014). After five epochs it narrows the gap between training and test; it does
not raise the test accuracy.
"""

import dataclasses

from mnist_mlp import experiment as mlp

from jdl.models import MLP

experiment = dataclasses.replace(mlp, model=MLP(widths=(128,), dropout=0.5))
