"""ResNet-50 on ImageNet: the recipe of Goyal et al. (2017), with cosine decay and label smoothing.

    TFDS_DATA_DIR=DIR jdl train imagenet_resnet50

A learning rate of 0.1 per 256 images of a batch, warmed up over five of 90 epochs; random
windows of 224x224 pixels, flipped. Not run yet: the images must be downloaded by hand from
https://image-net.org and prepared with `tfds build imagenet2012 --file_format=array_record`.
"""

from jdl import Experiment, Runtime
from jdl.data import TFDS, RandomFlip, RandomResizedCrop, Scale
from jdl.models import ResNet50
from jdl.optimizers import SGD, Cosine
from jdl.tasks import Classification

BATCH = 256
EPOCHS = 90

experiment = Experiment(
    model=ResNet50(),
    task=Classification(label_smoothing=0.1),
    data=TFDS(
        "imagenet2012",
        transforms=(RandomResizedCrop(height=224, width=224),),
        device_transforms=(RandomFlip(), Scale(offset=114.5, divisor=57.6)),
        test_fraction=0.0,
    ),
    optimizer=SGD(
        0.1 * BATCH / 256,
        momentum=0.9,
        nesterov=True,
        l2=0.5e-4,  # the paper's weight decay of 1e-4, which is half the square's factor
        schedule=Cosine(warmup=5 / EPOCHS),
    ),
    epochs=EPOCHS,
    batch_size=BATCH,
    runtime=Runtime(workers=8),
)
