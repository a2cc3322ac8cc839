"""CNN on cats and dogs, from scratch: three convolutions with pooling, two dense layers.

    TFDS_DATA_DIR=DIR jdl train cats_vs_dogs_cnn

Photographs resized to 150x150, one sigmoid output; the network of most introductions. It
overfits: accuracy on the training images is 91 %.

Expect: test accuracy 0.7138 (3 seeds, min 0.7113), 755.2 s, 2 busy cores of an AMD EPYC
"""

from jdl import Experiment
from jdl.data import TFDS, Resize, Scale
from jdl.models import CNN
from jdl.optimizers import Adam
from jdl.tasks import BinaryClassification

experiment = Experiment(
    model=CNN(channels=(32, 64, 128), dense=(512,), num_classes=1, padding="VALID"),
    task=BinaryClassification(),
    data=TFDS(
        "cats_vs_dogs",
        transforms=(Resize(height=150, width=150),),
        device_transforms=(Scale(),),
    ),
    optimizer=Adam(1e-4, eps=1e-7),
    epochs=10,
    batch_size=32,
)
