"""Fast style transfer (Johnson et al., 2016): a network that paints any photograph in one pass.

    TFDS_DATA_DIR=DIR jdl train cats_vs_dogs_vgg --workdir runs/cats_vs_dogs_vgg
    TFDS_DATA_DIR=DIR jdl train fast_style --workdir runs/fast_style
    jdl predict runs/fast_style photo.jpg --draw painted

Trained on photographs of cats and dogs, with the losses of `photo_style` and its style.
"""

import dataclasses

from cats_vs_dogs_vgg import experiment as vgg
from photo_style import experiment as photo

from jdl import Experiment, Runtime
from jdl.data import RandomFlip, Resize, Scale
from jdl.hooks import Sample
from jdl.models import ImageTransformNet
from jdl.optimizers import Adam, Cosine

experiment = Experiment(
    model=ImageTransformNet(channels=(16, 32, 64)),
    task=dataclasses.replace(photo.task, inputs="image", any_size=True),
    data=dataclasses.replace(
        vgg.data,
        transforms=(Resize(height=128, width=128),),
        device_transforms=(RandomFlip(), Scale()),
    ),
    optimizer=Adam(2e-3, schedule=Cosine(warmup=0.05)),
    hooks=(*Experiment.hooks, Sample(every=200)),
    epochs=2,
    batch_size=4,
    runtime=Runtime(log_every=20),
    final_train_evaluation=False,
)
