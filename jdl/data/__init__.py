"""Data sets, transforms, tokenizers, and the input pipelines that batch them."""

from jdl.data.arrays import Arrays, Digits
from jdl.data.audio import AudioFeatures, FixLength, SpecAugment
from jdl.data.audio_augment import AddNoise, RandomGain, Reverberate, TimeStretch
from jdl.data.audio_files import AudioFolder
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
from jdl.data.boxes import ConvertBoxes, Pad
from jdl.data.buckets import Buckets
from jdl.data.chats import ChatFile, Chats, ChatTemplate
from jdl.data.documents import Documents, Texts
from jdl.data.folder import ImageFolder
from jdl.data.image_annotations import ImageBoxes, ImageMasks
from jdl.data.interactions import Interactions
from jdl.data.language import Streams, Tokens
from jdl.data.mixture import Mixture, Stream
from jdl.data.mosaic import Mosaic
from jdl.data.pairs import Pairs, PairTable
from jdl.data.panel import Panel
from jdl.data.randaugment import RandAugment
from jdl.data.resize import RandomResizedCrop, Resize
from jdl.data.reweighing import Reweighed
from jdl.data.selection import Selection
from jdl.data.series import Series
from jdl.data.sources import Source, Subset
from jdl.data.speech import Speech
from jdl.data.stdlib import StandardLibrary, StandardLibraryChats
from jdl.data.tables import Table
from jdl.data.text import Words
from jdl.data.text_files import TextFile, TextTable
from jdl.data.tfds import TFDS
from jdl.data.tokenizers import BPE, Bytes, Chars, Saved, TokenizerFile, WordLevel
from jdl.data.transforms import Binarize, MaskTokens, Normalize, Scale
from jdl.data.views import OnViews, Views

__all__ = [
    "BPE",
    "TFDS",
    "AddNoise",
    "AlternatingFlip",
    "Arrays",
    "AudioFeatures",
    "AudioFolder",
    "Binarize",
    "Buckets",
    "Bytes",
    "Chars",
    "ChatFile",
    "ChatTemplate",
    "Chats",
    "ColorJitter",
    "ConvertBoxes",
    "CutMix",
    "Cutout",
    "Data",
    "Digits",
    "Documents",
    "FixLength",
    "ImageBoxes",
    "ImageFolder",
    "ImageMasks",
    "Interactions",
    "MaskTokens",
    "Mixture",
    "Mixup",
    "Mosaic",
    "Normalize",
    "OnViews",
    "Pad",
    "PairTable",
    "Pairs",
    "Panel",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomFlip",
    "RandomGain",
    "RandomResizedCrop",
    "Resize",
    "Reverberate",
    "Reweighed",
    "Saved",
    "Scale",
    "Selection",
    "Series",
    "Source",
    "SpecAugment",
    "Speech",
    "StandardLibrary",
    "StandardLibraryChats",
    "Stream",
    "Streams",
    "Subset",
    "Table",
    "TextFile",
    "TextTable",
    "Texts",
    "TimeStretch",
    "TokenizerFile",
    "Tokens",
    "Views",
    "WordLevel",
    "Words",
]
