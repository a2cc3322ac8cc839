"""Segmentation of the scenes of `digits_detection`: digit or background of each pixel.

    jdl train digits_segmentation

Faint pixels, and those that an augmentation brings in from beyond the edges, are ignored.
"""

import dataclasses

from digits_detection import experiment as detection

from jdl.models import UNet
from jdl.tasks import Segmentation

experiment = dataclasses.replace(
    detection,
    model=UNet(channels=(16, 32, 64), features=11),
    task=Segmentation(ignored_class=255),
    epochs=20,
)
