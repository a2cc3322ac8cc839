"""MLP on scikit-learn's digits. The first run on a new machine: real data, no network.

    jdl train digits_mlp

1,797 images of 8x8 pixels come with scikit-learn; a fifth is the test split, and a tenth of
the rest is for validation.

Expect: test accuracy 0.9833 (5 seeds, min 0.9805), 5.5 s, 2 cores of an AMD EPYC
"""

from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.models import MLP
from jdl.optimizers import Adam

experiment = Experiment(
    model=MLP(widths=(128,)),
    data=Digits(device_transforms=(Scale(divisor=16.0),)),
    optimizer=Adam(1e-3),
    epochs=30,
    batch_size=32,
)
