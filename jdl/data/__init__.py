"""Data sets, transforms and the pipelines that feed them to a compiled step."""

from jdl.data.arrays import Arrays, Digits
from jdl.data.base import Data, Source, Subset
from jdl.data.text import Characters, Words
from jdl.data.tfds import TFDS
from jdl.data.transforms import RandomCrop, RandomFlip, Resize, Scale

__all__ = [
    "TFDS",
    "Arrays",
    "Characters",
    "Data",
    "Digits",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "Scale",
    "Source",
    "Subset",
    "Words",
]
