"""Segmentation of cats and dogs from their background: a U-Net on the Oxford-IIIT pets.

    jdl train oxford_pets_unet --seeds 3

Trained by cross-entropy and the Dice loss (Milletari et al., 2016), and scored by the Dice
coefficient of the animal; the border around it, which annotators left open, does not count. Not
measured.
"""

import numpy as np

from jdl import Experiment
from jdl.data import TFDS, ColorJitter, RandomAffine, RandomFlip, Resize, Scale
from jdl.hooks import Checkpoint, Evaluate, Progress, RetraceWarning, Sample, TensorBoard
from jdl.metrics import DiceScore
from jdl.models import UNet
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import CrossEntropy, Dice, Segmentation

OPEN = 255
CLASSES = np.array([OPEN, 1, 0, OPEN], np.uint8)  # of the ids: 1 animal, 2 background, 3 border


def foreground(example):
    """Host: masks of 0 background, 1 animal and 255 border; others of the arrays are left out."""
    kept = {"image": example["image"]}
    if "segmentation_mask" in example:
        kept["segmentation_mask"] = CLASSES[example["segmentation_mask"]]
    return kept


experiment = Experiment(
    UNet(channels=(24, 48, 72, 96), features=2, stride=2),
    task=Segmentation(
        ignored_class=OPEN,
        losses=(CrossEntropy(), Dice()),
        loss_terms=(("cross_entropy", 1.0), ("dice", 1.0)),
        metrics=(DiceScore(classes=(1,), ignored_class=OPEN),),
    ),
    data=TFDS(
        "oxford_iiit_pet",
        transforms=(foreground, Resize(height=160, width=160)),
        device_transforms=(
            RandomFlip(),
            RandomAffine(rotation_range=15, zoom_range=0.25, fill_mode="constant", mask_cval=OPEN),
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            Scale(),
        ),
        class_names=("background", "animal"),
    ),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.05), ema_decay=0.99),
    hooks=(
        Progress(),
        TensorBoard(),
        Evaluate(every=200),
        Checkpoint(every=200, best=1, metric="validation.dice_score"),
        RetraceWarning(),
        Sample(every=1000, count=9),
    ),
    epochs=40,
    batch_size=16,
    precision="bf16",
)
