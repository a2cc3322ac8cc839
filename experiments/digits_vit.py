"""Vision transformer on scikit-learn's digits: sixteen 2x2 patches, random shifts.

    jdl train digits_vit

Dosovitskiy et al. (2021) at the smallest scale, from scratch. It trains for
fifteen times the epochs of `digits_cnn`, whose convolutions are shift-equivariant, and does not
reach its accuracy.

Expect: test accuracy 0.9805 (3 seeds, min 0.9749), 165.1 s, 2 cores of an AMD EPYC
"""

from jdl import Experiment, Runtime
from jdl.data import Digits, RandomCrop, Scale
from jdl.models import ViT
from jdl.optimizers import AdamW, Cosine

experiment = Experiment(
    model=ViT(patch_size=2, num_layers=4, num_heads=4, embed_dim=64, mlp_dim=128, dropout_rate=0.1),
    data=Digits(device_transforms=(RandomCrop(padding=1), Scale(divisor=16.0))),
    optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.1), weight_decay=0.1, clip_norm=1.0),
    epochs=300,
    batch_size=64,
    runtime=Runtime(malloc_arenas=0),
)
