"""Segmentation of the road scenes of CamVid: eleven classes at 180x240 pixels.

    jdl prepare camvid
    TFDS_DATA_DIR=DIR jdl train camvid_segmentation --seeds 3

A U-Net at half the resolution, whose logits are enlarged. Classes are weighed as for ENet (Paszke
et al., 2016), by 1 / ln(1.02 + p), where p is their share of the training pixels. In bfloat16,
which processors without it compute slowly: `--precision fp32`.

Poles, signs, fences and pedestrians have an IoU of 0.12 to 0.27, road and sky of 0.89 to 0.91.

Expect: test mean_iou 0.4972 (3 seeds, min 0.4933), 34 s, one NVIDIA H200
"""

import math

from jdl import Experiment
from jdl.data import TFDS, ColorJitter, RandomAffine, RandomFlip, Scale
from jdl.hooks import Checkpoint, Evaluate, Progress, RetraceWarning, Sample, TensorBoard
from jdl.models import UNet
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import MIRROR, Segmentation

SHARES = {  # of the pixels of the training split
    "sky": 0.1744,
    "building": 0.2419,
    "pole": 0.0102,
    "road": 0.331,
    "pavement": 0.0467,
    "tree": 0.1011,
    "sign_symbol": 0.0122,
    "fence": 0.0117,
    "car": 0.0611,
    "pedestrian": 0.0067,
    "bicyclist": 0.003,
}

experiment = Experiment(
    UNet(channels=(24, 48, 72, 96), features=11, stride=2, norm="batch"),
    task=Segmentation(
        ignored_class=11,
        class_weights=tuple(1 / math.log(1.02 + share) for share in SHARES.values()),
        views=MIRROR,
    ),
    data=TFDS(
        "camvid",
        device_transforms=(
            RandomFlip(),
            RandomAffine(
                zoom_range=0.25,
                width_shift_range=0.1,
                height_shift_range=0.1,
                fill_mode="constant",
                mask_cval=11,
            ),
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            Scale(),
        ),
        class_names=tuple(SHARES),
    ),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.05), ema_decay=0.99),
    hooks=(
        Progress(),
        TensorBoard(),
        Evaluate(every=460),
        Checkpoint(every=460),
        RetraceWarning(),
        Sample(every=1840, count=9),
    ),
    epochs=70,
    batch_size=8,
    precision="bf16",
)
