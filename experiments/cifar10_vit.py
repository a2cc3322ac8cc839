"""Small vision transformer on CIFAR-10: 4x4 patches, RandAugment, label smoothing.

    jdl prepare cifar10
    TFDS_DATA_DIR=DIR jdl train cifar10_vit --seeds 3

From scratch a transformer needs more augmentation and epochs than a convolutional network
(Touvron et al., 2021): `--epochs 200` is the recipe of full length.

On JPEG copies of the images: test accuracy 0.7458 (1 seed, in bf16), 144 s on one NVIDIA H200
beside other runs, 91 of them compiling.
"""

from jdl import Experiment
from jdl.data import TFDS, RandAugment, RandomCrop, RandomFlip, Scale
from jdl.models import ViT
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import Classification

experiment = Experiment(
    model=ViT(
        patch_size=4, num_layers=6, num_heads=6, embed_dim=192, pool="mean", dropout_rate=0.1
    ),
    task=Classification(label_smoothing=0.1),
    data=TFDS(
        "cifar10",
        validation_fraction=0.0,
        device_transforms=(RandomCrop(padding=4), RandomFlip(), RandAugment(), Scale()),
    ),
    optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.05), weight_decay=0.05, clip_norm=1.0),
    epochs=30,
    batch_size=128,
)
