"""A denoiser of digits whose loss draws noise, as those of diffusion models do (Ho et al., 2020).

    jdl train digits_denoiser

`noisy_psnr`, that of the noisy images, is 4.64 dB.
Expect: test psnr 14.9617 (3 seeds, min 14.9259), 15 s, 2 cores of an Intel Xeon
"""

from dataclasses import dataclass

import flax.struct
import jax
import numpy as np

from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import Task, forward, row_keys


@flax.struct.dataclass
class PSNR(Mean):
    """Peak signal-to-noise ratio of images in [0, 1], in decibels, of squared errors."""

    def compute(self):
        return float(-10 * np.log10(self.total / self.count))


@dataclass(frozen=True, kw_only=True)
class Denoising(Task):
    """Squared error of images restored from noisy ones, of a noise level drawn for each."""

    targets: str = "image"

    def noisy(self, batch):
        def one(key, image):
            level = jax.random.uniform(jax.random.fold_in(key, 1))
            return image + level * jax.random.normal(key, image.shape)

        return jax.vmap(one)(row_keys(batch), batch["image"])

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        given, mask = self.noisy(batch), batch["mask"]
        found, new = forward(model, params, state.collections, given, train=train, key=key)
        images = (given, found.reshape(given.shape))
        before, after = (((x - batch["image"]) ** 2).mean((1, 2, 3)) for x in images)
        scores = {"noisy_psnr": PSNR.of(before, mask), "psnr": PSNR.of(after, mask)}
        return {"loss": Mean.of(after, mask), **scores}, new


experiment = Experiment(
    model=MLP(widths=(512, 512), features=64),
    task=Denoising(),
    data=Digits(device_transforms=(Scale(divisor=16.0),)),
    optimizer=AdamW(2e-3, schedule=Cosine(), ema_decay=0.99),
    epochs=100,
    batch_size=64,
)
