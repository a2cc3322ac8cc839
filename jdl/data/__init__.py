"""Data sets, transforms and the pipelines that feed them to a compiled step."""

from jdl.data.arrays import Arrays, Digits
from jdl.data.augment import (
    ColorJitter,
    CutMix,
    Cutout,
    Mixup,
    RandomAffine,
    RandomCrop,
    RandomFlip,
)
from jdl.data.base import Data, Source, Subset
from jdl.data.characters import Characters, Streams
from jdl.data.folder import ImageFolder
from jdl.data.pairs import Pairs, PairTable
from jdl.data.randaugment import RandAugment
from jdl.data.selection import Selection
from jdl.data.series import Series
from jdl.data.tables import Table, TextFile, TextTable
from jdl.data.text import Words
from jdl.data.tfds import TFDS
from jdl.data.transforms import Resize, Scale

__all__ = [
    "TFDS",
    "Arrays",
    "Characters",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "Data",
    "Digits",
    "ImageFolder",
    "Mixup",
    "PairTable",
    "Pairs",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "Scale",
    "Selection",
    "Series",
    "Source",
    "Streams",
    "Subset",
    "Table",
    "TextFile",
    "TextTable",
    "Words",
]
