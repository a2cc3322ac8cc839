"""Magnitude pruning on MNIST: `mnist_cnn` with 95 % of its weights zero (Zhu and Gupta, 2017).

    TFDS_DATA_DIR=DIR jdl train mnist_pruned --seeds 3

The share of zeros grows between a fifth and four fifths of the run. `jdl compress` shows what it
saves.

Expect: test accuracy 0.9893 (3 seeds, min 0.9887), 93 s, 1 busy core of an Intel Xeon
"""

from mnist_cnn import experiment as cnn

import jdl
from jdl.optimizers import Pruning

experiment = jdl.override(cnn, {"optimizer.pruning": Pruning(sparsity=0.95, end=0.8)})
