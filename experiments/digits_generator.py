"""Class-conditional VAE on the 100 digits of `mnist_few_digits` (Sohn, Lee and Yan, 2015).

    TFDS_DATA_DIR=DIR jdl train digits_generator --workdir runs/digits_generator

It makes the images that `digits_generated` learns from. Samples are of the classes of the training
examples, in their order.
"""

import dataclasses
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from mnist_few_digits import experiment as few

from jdl import Experiment, Runtime
from jdl.data import Scale
from jdl.hooks import Checkpoint, Progress, Sample
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import Adam, Cosine
from jdl.tasks import Task, forward, row_keys


class ConditionalVAE(nn.Module):
    """Encodes images of a class to a Gaussian, and decodes latent vectors to such images."""

    shape: tuple[int, ...] = (28, 28, 1)  # of an image
    num_classes: int = 5
    latent_dim: int = 8
    widths: tuple[int, ...] = (256, 256)  # hidden units of the encoder; reversed, of the decoder

    def setup(self):
        height, width, channels = self.shape
        self.encoder = MLP(self.widths, 2 * self.latent_dim)
        self.decoder = MLP(self.widths[::-1], height * width * channels)

    def __call__(self, image, label):
        return self.decode(self.encode(image, label)[0], label)

    def encode(self, image, label):
        known = jax.nn.one_hot(label, self.num_classes)
        return jnp.split(
            self.encoder(jnp.concatenate([image.reshape(len(image), -1), known], 1)), 2, 1
        )

    def decode(self, latent, label):
        known = jax.nn.one_hot(label, self.num_classes)
        logits = self.decoder(jnp.concatenate([latent, known], 1))
        return nn.sigmoid(logits).reshape(-1, *self.shape)


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """Negative evidence lower bound of pixels under Gaussian noise, in nats, less its constant."""

    inputs: tuple[str, ...] = ("image", "label")
    targets: str = "image"
    noise: float = 0.3  # standard deviation of a pixel

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        def apply(*inputs, method):
            return forward(
                model, params, state.collections, *inputs, train=train, key=key, method=method
            )[0]

        images, label = batch["image"], batch["label"]
        mean, log_variance = apply(images, label, method="encode")
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(row_keys(batch))
        found = apply(mean + jnp.exp(log_variance / 2) * noise, label, method="decode")
        errors = ((found - images) ** 2).sum((1, 2, 3)) / (2 * self.noise**2)
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(1) / 2
        rows = {"loss": errors + kl, "reconstruction": errors, "kl": kl}
        return {
            name: Mean.of(values, batch["mask"]) for name, values in rows.items()
        }, state.collections

    def sample(self, model, state, batch):
        shape = (model.latent_dim,)
        latent = jax.vmap(lambda key: jax.random.normal(key, shape))(row_keys(batch))
        inputs = latent, batch["label"]
        return forward(
            model, state.params, state.collections, *inputs, train=False, method="decode"
        )[0]


experiment = Experiment(
    model=ConditionalVAE(),
    task=Generation(),
    data=dataclasses.replace(few.data, device_transforms=(Scale(),)),
    optimizer=Adam(1e-3, schedule=Cosine()),
    hooks=(Progress(), Checkpoint(every=500), Sample(every=500, count=25, split="train")),
    steps=1000,
    batch_size=100,
    runtime=Runtime(malloc_arenas=0),
)
