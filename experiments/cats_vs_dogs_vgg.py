"""VGG-like CNN on small photographs of cats and dogs, whose features `photo_style` compares.

    TFDS_DATA_DIR=DIR jdl train cats_vs_dogs_vgg --workdir runs/cats_vs_dogs_vgg

It pools by means, whose gradients reach every pixel (Gatys et al., 2016, section 2), and before the
last layer over the whole image, so that images may have any size.
"""

from jdl import Experiment
from jdl.data import TFDS, RandomAffine, Resize, Scale
from jdl.models import CNN
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import BinaryClassification

augment = RandomAffine(
    rotation_range=15, width_shift_range=0.1, height_shift_range=0.1, zoom_range=0.2,
    horizontal_flip=True,
)  # fmt: skip
experiment = Experiment(
    model=CNN(
        channels=(32, 64, 128, 256),
        repeats=(1, 1, 2, 2),
        dense=(),
        num_classes=1,
        batch_norm=True,
        pooling="mean",
        global_pooling=True,
    ),
    task=BinaryClassification(),
    data=TFDS(
        "cats_vs_dogs",
        transforms=(Resize(height=64, width=64),),
        device_transforms=(augment, Scale()),
    ),
    optimizer=AdamW(3e-3, schedule=Cosine(warmup=0.1), weight_decay=0.05),
    epochs=5,
    final_train_evaluation=False,
)
