"""The MLP of `mnist_mlp`: a comparison of optimizers.

    for name in sgd rmsprop adagrad adam; do
        TFDS_DATA_DIR=DIR jdl train optimizers --optimizer $name --seeds 3 \\
            --workdir runs/optimizers/$name
    done
    TFDS_DATA_DIR=DIR jdl train optimizers --optimizer sgd --optimizer.momentum 0.9 \\
        --seeds 3 --workdir runs/optimizers/momentum
    jdl compare runs/optimizers/* --out runs/optimizers

Each uses its default learning rate. `--batch-size 54000` gives full-batch gradient descent.

Test accuracy of three seeds, mean and minimum: sgd 0.9251 / 0.9236, momentum 0.9695 / 0.9677,
adagrad 0.9416 / 0.9391, rmsprop 0.9714 / 0.9700, adam 0.9732 / 0.9723.

Expect: test accuracy 0.9732 (3 seeds, min 0.9723), 7.9 s, 2 cores of an AMD EPYC
"""

import dataclasses

from mnist_mlp import experiment as mlp

from jdl.data import TFDS, Scale

experiment = dataclasses.replace(mlp, data=TFDS("mnist", device_transforms=(Scale(),)), epochs=3)
