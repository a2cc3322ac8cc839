"""Readers of data sets in their originals' own formats: idx, CIFAR binaries, text, archives.

Each reader takes the file or directory that holds the originals and returns, per split, an iterator
over `(key, example)`. The keys are those of the TensorFlow Datasets catalogue: it orders examples
by them. A damaged example, to be skipped, is `None`.

Nothing is unpickled, and archives are read member by member in memory: nothing is extracted.
"""

import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jdl.data.archives import find_archive, find_files, read_members, read_text, read_whole
from jdl.errors import UserError

Example = dict[str, Any]
Splits = dict[str, Iterator[tuple[int | str, Example | None]]]


def read_mnist(raw: Path) -> Splits:
    """Reads MNIST's or Fashion-MNIST's four idx files, gzipped or not.

    Args:
      raw: directory with `train-images-idx3-ubyte.gz` and the other three.

    Returns:
      `train` and `test` of `image` (PNG bytes of a uint8 [28, 28, 1] image) and `label` (0-9).

    Raises:
      UserError: a file is missing, damaged or disagrees with its counterpart.
    """
    parts = {"train": "train", "test": "t10k"}
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    names = [f"{part}-{kind}" for part in parts.values() for kind in kinds]
    paths = find_files(raw, names)
    return {
        split: _idx_examples(*(paths[f"{part}-{kind}"] for kind in kinds))
        for split, part in parts.items()
    }


def _idx_examples(images_path: Path, labels_path: Path) -> Iterator[tuple[int, Example]]:
    images, labels = _idx(images_path, ndim=3), _idx(labels_path, ndim=1)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{images_path} holds images of {images.shape[1:]} pixels, not (28, 28)")
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels"
        )
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": encode_png(image), "label": _class(int(label), labels_path)}


def _idx(path: Path, *, ndim: int) -> np.ndarray:
    """Returns the uint8 array of `ndim` dimensions in an idx file (LeCun's format)."""
    data = read_whole(path)
    head = 4 + 4 * ndim
    if len(data) < head or data[:4] != bytes((0, 0, 8, ndim)):
        raise UserError(f"{path} does not begin like an idx file of bytes in {ndim} dimensions")
    shape = struct.unpack(f">{ndim}I", data[4:head])
    if len(data) - head != math.prod(shape):
        raise UserError(
            f"{path} is damaged: its header gives {math.prod(shape)} bytes, "
            f"but {len(data) - head} follow"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def read_cifar10(raw: Path) -> Splits:
    """Reads the binary version of CIFAR-10: records of one label byte and 3 x 32 x 32 pixels.

    Args:
      raw: `cifar-10-binary.tar.gz`, the extracted `cifar-10-batches-bin`, or the parent of either.

    Returns:
      `train` and `test` of `id`, `image` (PNG bytes of a uint8 [32, 32, 3] image) and `label`.

    Raises:
      UserError: a batch is missing or damaged, or only the pickled Python version is there.
    """
    batches = {
        "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    folders = ("cifar-10-batches-bin", "cifar-10-batches-py")
    return _read_cifar(raw, "cifar-10", folders, batches, {"label": 10})


def read_cifar100(raw: Path) -> Splits:
    """Reads the binary version of CIFAR-100: as of CIFAR-10, with the superclass before the class.

    Args:
      raw: `cifar-100-binary.tar.gz`, the extracted `cifar-100-binary`, or the parent of either.

    Returns:
      `train` and `test` of `id`, `image` (PNG bytes of a uint8 [32, 32, 3] image), `coarse_label`
      and `label`.

    Raises:
      UserError: a batch is missing or damaged, or only the pickled Python version is there.
    """
    batches = {"train": ["train.bin"], "test": ["test.bin"]}
    labels = {"coarse_label": 20, "label": 100}
    folders = ("cifar-100-binary", "cifar-100-python")
    return _read_cifar(raw, "cifar-100", folders, batches, labels)


def _read_cifar(
    raw: Path,
    name: str,
    folders: tuple[str, str],
    names: Mapping[str, list[str]],
    labels: Mapping[str, int],
) -> Splits:
    """Reads the batches of each split.

    Args:
      raw: the archive, its extracted folder, or the parent of either.
      name: of the data set in the names of its archives.
      folders: extracted from the binary version, and from the pickled one.
      names: of the batches by split.
      labels: numbers of classes by the names of the bytes before the pixels, in their order.
    """
    archive, folder = f"{name}-binary.tar.gz", folders[0]
    pickled = (f"{name}-python.tar.gz", folders[1])
    if raw.name in pickled or (
        any((raw / each).exists() for each in pickled)
        and not any((raw / each).exists() for each in (archive, folder))
    ):
        raise UserError(
            f"{raw} holds the pickled Python version of {name.upper()}, which is never unpickled "
            f"here: give the binary version, {archive}"
        )
    source = find_archive(raw, archive, folder, inside=names["test"][0])
    pattern = re.compile(rf"{folder}/(\w+\.bin)")
    batches = {match[1]: data for match, data in read_members(source, folder, pattern)}
    missing = [each for each in itertools.chain(*names.values()) if each not in batches]
    if missing:
        raise UserError(f"{source} is missing {', '.join(f'{folder}/{each}' for each in missing)}")
    return {
        split: _cifar_examples(split, source, {each: batches[each] for each in listed}, labels)
        for split, listed in names.items()
    }


def _cifar_examples(
    split: str, source: Path, batches: Mapping[str, bytes], labels: Mapping[str, int]
) -> Iterator[tuple[int, Example]]:
    index, head = itertools.count(), len(labels)
    size = head + 3072
    for name, data in batches.items():
        if len(data) % size:
            raise UserError(
                f"{name} in {source} is damaged: {len(data)} bytes are not whole records of {size}"
            )
        for record in np.frombuffer(data, np.uint8).reshape(-1, size):
            key, image = next(index), record[head:].reshape(3, 32, 32).transpose(1, 2, 0)
            known = {
                label: _class(int(byte), source, count)
                for byte, (label, count) in zip(record, labels.items(), strict=False)
            }
            yield key, {"id": f"{split}_{key:05d}", "image": encode_png(image), **known}


def read_imdb(raw: Path) -> Splits:
    """Reads the Large Movie Review Dataset (Maas et al., 2011).

    Args:
      raw: `aclImdb_v1.tar.gz`, the extracted `aclImdb`, or the parent of either.

    Returns:
      `train`, `test` and `unsupervised` of `text` (bytes) and `label` (-1 where there is none).

    Raises:
      UserError: neither is there, or the archive is damaged.
    """
    source = find_archive(raw, "aclImdb_v1.tar.gz", "aclImdb", inside="train")
    return {
        "train": _reviews(source, r"aclImdb/train/(neg|pos)/[^/]+\.txt"),
        "test": _reviews(source, r"aclImdb/test/(neg|pos)/[^/]+\.txt"),
        "unsupervised": _reviews(source, r"aclImdb/train/(unsup)/[^/]+\.txt"),
    }


def _reviews(source: Path, pattern: str) -> Iterator[tuple[str, Example]]:
    for match, data in read_members(source, "aclImdb", re.compile(pattern)):
        yield match[0], {"text": data.strip(), "label": -1 if match[1] == "unsup" else match[1]}


def read_cats_vs_dogs(raw: Path) -> Splits:
    """Reads the Asirra images (Elson et al., 2007), as they are: JPEG bytes.

    Args:
      raw: `kagglecatsanddogs_5340.zip`, the extracted `PetImages`, or the parent of either.

    Returns:
      `train` of `image`, `image/filename` and `label`; `None` for each damaged image.

    Raises:
      UserError: neither is there, or the archive is damaged.
    """
    source = find_archive(raw, "kagglecatsanddogs_5340.zip", "PetImages", inside="Cat")
    return {"train": _pets(source)}


def _pets(source: Path) -> Iterator[tuple[str, Example | None]]:
    pattern = re.compile(r"PetImages/(Cat|Dog)/\d+\.jpg")
    for match, data in read_members(source, "PetImages", pattern):
        # TFDS peeks into the zip member, which shows 512 bytes: so it drops 1,738.
        image = readable_image(data) if b"JFIF" in data[:512] else None
        example = {"image": image, "image/filename": match[0], "label": match[1].lower()}
        yield match[0], None if image is None else example


def readable_image(data: bytes, only: str = "") -> bytes | None:
    """Returns an encoded image, or None if it is damaged.

    It is encoded anew as PNG if it is neither RGB nor gray, or as a JPEG if it is not in the format
    `only`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF blocks; only the pixels matter here
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                if image.mode in ("RGB", "L") and only in ("", image.format):
                    return data
                stream = io.BytesIO()
                image.convert("RGB").save(stream, format=only or "png", quality=95)
                return stream.getvalue()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None


def read_tiny_shakespeare(raw: Path) -> Splits:
    """Reads Karpathy's `input.txt`, cut into 90, 5 and 5 % of its characters.

    Args:
      raw: the text file, or the directory that holds it as `input.txt`.

    Returns:
      `train`, `validation` and `test` of one example each, `text`.

    Raises:
      UserError: the file is missing or not UTF-8.
    """
    path = raw if raw.is_file() else find_files(raw, ["input.txt"])["input.txt"]
    text = read_text(path)
    first = int(len(text) * 0.9)
    second = first + int((len(text) - first) * 0.5)
    parts = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
    return {split: iter([(split, {"text": part})]) for split, part in parts.items()}


def read_multi30k(raw: Path) -> Splits:
    """Reads Multi30k's task 1, English-German (Elliott et al., 2016), gzipped or not.

    Args:
      raw: directory with `train`, `val` and `test_2016_flickr`, each `.en` and `.de`.

    Returns:
      `train`, `validation` and `test` of `en` and `de`, one sentence each.

    Raises:
      UserError: a file is missing or damaged, or the two of a split differ in length.
    """
    parts = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    paths = find_files(raw, [f"{part}.{code}" for part in parts.values() for code in ("en", "de")])
    return {
        split: _pairs(paths[f"{part}.en"], paths[f"{part}.de"]) for split, part in parts.items()
    }


def _pairs(english: Path, german: Path) -> Iterator[tuple[int, Example]]:
    en, de = _lines(english), _lines(german)
    if len(en) != len(de):
        raise UserError(f"{english} has {len(en)} lines but {german} has {len(de)}")
    for index, (source, target) in enumerate(zip(en, de, strict=True)):
        yield index, {"en": source.strip(), "de": target.strip()}


def _lines(path: Path) -> list[str]:
    # Not splitlines, which also cuts at characters that may stand within a sentence.
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _class(label: int, path: Path, count: int = 10) -> int:
    if not 0 <= label < count:
        raise UserError(f"{path} is damaged: label {label} is not one of 0 to {count - 1}")
    return int(label)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image of [height, width] or [height, width, 3]."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="png")
    return stream.getvalue()
