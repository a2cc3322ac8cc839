"""ViT-S/16 on ImageNet, with the plain recipe of Beyer et al. (2022).

    TFDS_DATA_DIR=DIR jdl train imagenet_vit_s16

AdamW at 1e-3 for batches of 1,024, warmed up for 10,000 steps, 90 epochs, mean pooling over
patches. A decay of 0.1 equals their 1e-4, which is not multiplied by the learning rate. Random
windows of 5 % to 100 % of an image, without mixup. Not run yet: the images must be downloaded by
hand from https://image-net.org and prepared with
`tfds build imagenet2012 --file_format=array_record`.
"""

from jdl import Experiment, Runtime
from jdl.data import TFDS, RandAugment, RandomFlip, RandomResizedCrop, Scale
from jdl.models import ViTSmall16
from jdl.optimizers import AdamW, Cosine

experiment = Experiment(
    model=ViTSmall16(num_classes=1000, pool="mean"),
    data=TFDS(
        "imagenet2012",
        transforms=(RandomResizedCrop(height=224, width=224, scale=(0.05, 1.0)),),
        device_transforms=(RandomFlip(), RandAugment(), Scale()),
        test_fraction=0.0,
    ),
    optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.09), weight_decay=0.1, clip_norm=1.0),
    epochs=90,
    batch_size=1024,
    runtime=Runtime(workers=8),
)
