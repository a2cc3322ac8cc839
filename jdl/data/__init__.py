"""Data sets, transforms, tokenizers, and the input pipelines that batch them."""

from jdl.data.arrays import Arrays, Digits
from jdl.data.augment import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    Mixup,
    RandomAffine,
    RandomCrop,
    RandomFlip,
)
from jdl.data.base import Data
from jdl.data.documents import Documents, Texts
from jdl.data.folder import ImageFolder
from jdl.data.language import Streams, Tokens
from jdl.data.pairs import Pairs, PairTable
from jdl.data.randaugment import RandAugment
from jdl.data.selection import Selection
from jdl.data.series import Series
from jdl.data.sources import Source, Subset
from jdl.data.stdlib import StandardLibrary
from jdl.data.tables import Table
from jdl.data.text import Words
from jdl.data.text_files import TextFile, TextTable
from jdl.data.tfds import TFDS
from jdl.data.tokenizers import BPE, Bytes, Chars, Saved
from jdl.data.transforms import MaskTokens, Normalize, Resize, Scale

__all__ = [
    "BPE",
    "TFDS",
    "AlternatingFlip",
    "Arrays",
    "Bytes",
    "Chars",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "Data",
    "Digits",
    "Documents",
    "ImageFolder",
    "MaskTokens",
    "Mixup",
    "Normalize",
    "PairTable",
    "Pairs",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "Saved",
    "Scale",
    "Selection",
    "Series",
    "Source",
    "StandardLibrary",
    "Streams",
    "Subset",
    "Table",
    "TextFile",
    "TextTable",
    "Texts",
    "Tokens",
    "Words",
]
