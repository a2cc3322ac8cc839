"""Random search for the units and learning rate of an MLP on MNIST, in five trials.

    TFDS_DATA_DIR=DIR jdl tune mnist_mlp_search --sampler random --trials 5

The search of most introductions to Keras Tuner: 32 to 512 units, three rates; a fifth of the
training images held out for validation. `--sampler grid` tries all 48 points.

Found: validation accuracy 0.9768, with 320 units and a rate of 1e-3; 86 s, 2 cores of an AMD EPYC.
"""

import dataclasses

from mnist_mlp import experiment as mlp

from jdl.sweeps.search import Choice, Int

experiment = dataclasses.replace(mlp, data=dataclasses.replace(mlp.data, validation_fraction=0.2))
space = {
    "model.widths.0": Int(32, 512, step=32),
    "optimizer.learning_rate": Choice(1e-2, 1e-3, 1e-4),
}
