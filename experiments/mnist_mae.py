"""Masked autoencoder on MNIST: features of a transformer that predicts three of four patches.

    TFDS_DATA_DIR=DIR jdl train mnist_mae --seeds 3

He et al. (2022), probed as `mnist_simclr` is.
"""

import dataclasses

from mnist_simclr import experiment as simclr

from jdl.data import TFDS, RandomAffine, Scale
from jdl.hooks import Sample
from jdl.models import MaskedAutoencoder
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import MaskedAutoencoding

augment = RandomAffine(width_shift_range=0.1, height_shift_range=0.1, fill_mode="constant")
experiment = dataclasses.replace(
    simclr,
    model=MaskedAutoencoder(
        patch_size=4, num_layers=4, num_heads=4, embed_dim=128,
        decoder_layers=2, decoder_heads=4, decoder_dim=64,
    ),
    task=MaskedAutoencoding(metrics=simclr.task.metrics, probes=simclr.task.probes),
    data=TFDS("mnist", device_transforms=(Scale(), augment)),
    optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.1), weight_decay=0.05, b2=0.95),
    hooks=(*simclr.hooks, Sample(every=500)),
    steps=6000,
)  # fmt: skip
