"""Writes public data sets in TensorFlow Datasets' prepared layout, and fetches public files.

The catalogue's own builders of MNIST, CIFAR-10 and Cats vs Dogs decode and encode with TensorFlow.
Here images arrive encoded and the records are written as array_record, for which TFDS needs none.
Names, versions, features, splits and the order of the examples are the catalogue's.
"""

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdl.data import raw as originals
from jdl.data.base import default_data_dir
from jdl.data.download import checksums, fetch, file_name
from jdl.data.public_files import FILES, prepare_file
from jdl.data.tfds import check_tfds
from jdl.errors import UserError, nearest


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


def _images(features: Any, shape: tuple[int, ...], **classes: Any) -> dict[str, Any]:
    """The features of labeled PNG images; `classes` are their number or names."""
    return {
        "image": features.Image(shape=shape, encoding_format="png"),
        "label": features.ClassLabel(**classes),
    }


_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"

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
)


def prepare(
    name: str,
    *,
    raw: Path | None = None,
    data_dir: Path | None = None,
    download: bool = True,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
) -> Path:
    """Writes a data set so that `tfds.builder_from_directory(...)` reads it, or fetches a file.

    The data set appears under its name only when it is complete: a run that is killed leaves
    nothing but a hidden folder beside it.

    Args:
      name: a name of `RECIPES` or of `public_files.FILES`.
      raw: file or directory with the originals; None to take them from
        `DATA_DIR/downloads/NAME`, where they are downloaded to if they are not there.
      data_dir: directory of prepared data sets; by default `$TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`.
      download: whether to download what is missing.
      overwrite: whether to replace a data set that is already there.
      report: called with a sentence per action.

    Returns:
      The directory of the data set's version, such as `DATA_DIR/mnist/3.0.1`, or the file.

    Raises:
      UserError: unknown name; originals that are missing, damaged or cannot be downloaded; a
        directory that cannot be written.
    """
    root = Path(data_dir or default_data_dir()).expanduser()
    if file := next((file for file in FILES if file.name == name), None):
        settings = {"raw": raw, "download": download, "overwrite": overwrite, "report": report}
        return prepare_file(file, root, **settings)
    recipe = _recipe(name)
    target = root / recipe.path
    if target.exists() and not overwrite:
        if not (target / "dataset_info.json").is_file():
            raise UserError(f"{target} exists but is not a prepared data set: remove it first")
        report(f"{target} is already prepared")
        return target
    if raw is not None:
        source = raw.expanduser()
    else:
        source = root / "downloads" / recipe.name
        if download:
            fetch(recipe.urls, source, known=checksums(recipe.name), report=report)
    splits = recipe.read(source)
    try:
        counts, skipped = _write(recipe, splits, root)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError if the disk is full
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise UserError(f"cannot write in {root} ({reason})") from error
    report(f"prepared {target}: {_listed(counts)} examples")
    if skipped:
        report(f"skipped {skipped:,} damaged examples")
    if counts != recipe.examples:
        report(f"these are not all: the complete data set has {_listed(recipe.examples)}")
    return target


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def _recipe(name: str) -> Recipe:
    names = {recipe.name: recipe for recipe in RECIPES}
    if name not in names:
        known = [*names, *(file.name for file in FILES)]
        raise UserError(
            f"unknown data set {name!r}{nearest(name, known)} (there are {', '.join(known)})"
        )
    return names[name]


def _write(recipe: Recipe, splits: originals.Splits, root: Path) -> tuple[dict[str, int], int]:
    """Writes the splits to a temporary directory, then renames it.

    Returns:
      The number of examples in each split, and the number skipped.
    """
    target = root / recipe.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # TFDS ignores version folders whose name begins with a dot.
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=target.parent) as scratch:
        skipped = Counter()
        builder = _builder(recipe, splits, Path(scratch), skipped)
        with contextlib.redirect_stdout(io.StringIO()):  # it names the temporary directory
            builder.download_and_prepare()
        counts = {split: info.num_examples for split, info in builder.info.splits.items()}
        if recipe.config:
            default = Path(recipe.name, ".config")
            shutil.copytree(scratch / default, root / default, dirs_exist_ok=True)
        if target.exists():
            target.rename(Path(scratch, "replaced"))
        Path(builder.data_dir).rename(target)
    return counts, skipped.total()


def _builder(
    recipe: Recipe, splits: originals.Splits, data_dir: Path, skipped: Counter[str]
) -> Any:
    """Returns a TFDS builder that writes the splits and counts skipped examples in `skipped`."""
    check_tfds()
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Stands in for the catalogue's builder of the same name."""

        name = recipe.name
        VERSION = tfds.core.Version(recipe.version)
        BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=recipe.config, version=recipe.version)]
            if recipe.config
            else []
        )

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=recipe.description,
                features=tfds.features.FeaturesDict(recipe.features(tfds.features)),
                supervised_keys=recipe.supervised,
                homepage=recipe.homepage,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # the originals are there
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int | str, originals.Example]]:
            empty = True
            for key, example in splits[split]:
                if example is None:
                    skipped[split] += 1
                    continue
                empty = False
                yield key, example
            if empty:
                raise UserError(f"the originals of {recipe.name} have no examples of {split!r}")

    # TFDS sorts in memory up to 1,000 MiB a split, which all of these data sets stay below; for
    # more it would need TensorFlow.
    return Prepared(data_dir=data_dir, file_format="array_record")
