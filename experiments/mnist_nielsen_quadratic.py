"""Nielsen's first network: sigmoid neurons, quadratic cost, plain mini-batch gradient descent.

    TFDS_DATA_DIR=DIR jdl train mnist_nielsen_quadratic --seeds 3

"Neural networks and deep learning" (2015), chapter 1: 784, 30 and 10 neurons, batches of 10, rate
3, 30 epochs on 50,000 images, 0.9542 in the book. Weights begin as in its chapter 3, with a
deviation of one over the square root of a layer's inputs, and biases at 0; with chapter 1's
deviation of 1 the mean of three seeds is 0.9491.

Expect: test accuracy 0.9591 (3 seeds, min 0.9582), 91 s, 1 busy core of an Intel Xeon
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import Experiment, Runtime
from jdl.data import TFDS, Scale
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class Quadratic(Classification):
    """Half the squared distance of ten sigmoid outputs to the one-hot label."""

    def objective(self, outputs, batch):
        wanted = jax.nn.one_hot(batch[self.targets], outputs.shape[-1])
        rows = 0.5 * jnp.square(nn.sigmoid(outputs) - wanted).sum(-1)
        return Mean.of(rows, batch["mask"])

    def to_prediction(self, outputs, batch):
        return nn.sigmoid(outputs)


experiment = Experiment(
    model=MLP(widths=(30,), activation=nn.sigmoid, kernel_init=nn.initializers.lecun_normal()),
    task=Quadratic(),
    data=TFDS("mnist", validation_fraction=1 / 6, device_transforms=(Scale(),)),
    optimizer=SGD(3.0),
    epochs=30,
    batch_size=10,
    runtime=Runtime(steps_per_execution=500, malloc_arenas=0, log_every=5000),
)
