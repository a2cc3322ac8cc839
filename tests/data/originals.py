"""Tiny originals of each data set, written as their authors publish them, and read back by TFDS."""

import gzip
import hashlib
import io
import struct
import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

GENERATOR = np.random.default_rng(0)


def read(path, split, **options):
    builder: Any = tfds.builder_from_directory(path)
    return list(builder.as_data_source(split, **options))


def in_order(split, examples):
    """The catalogue's order: by the MD5 of the split's name and the key."""
    keys = sorted(examples, key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())
    return [examples[key] for key in keys]


def same(got, expected):
    return len(got) == len(expected) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(got, expected, strict=True)
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_mnist(raw, zipped=True):
    """Writes 20 + 7 digits; returns the examples by split and key."""
    raw.mkdir(exist_ok=True)
    examples = {}
    for split, part, count in (("train", "train", 20), ("test", "t10k", 7)):
        images = GENERATOR.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = GENERATOR.integers(0, 10, count, dtype=np.uint8)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            if zipped:
                (raw / f"{part}-{kind}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / f"{part}-{kind}").write_bytes(idx(array))
        examples[split] = {
            index: {"image": images[index][..., None], "label": labels[index]}
            for index in range(count)
        }
    return examples


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def cifar_files():
    """Five training batches of 5 records and a test batch of 3, as in the binary archive."""
    counts = {f"data_batch_{number}.bin": 5 for number in range(1, 6)} | {"test_batch.bin": 3}
    records = {
        name: np.concatenate(
            [
                GENERATOR.integers(0, 10, (count, 1), dtype=np.uint8),
                GENERATOR.integers(0, 256, (count, 3072), dtype=np.uint8),
            ],
            axis=1,
        )
        for name, count in counts.items()
    }
    # The order within the archive is not the order of the batches, as in the original.
    names = ["data_batch_4.bin", "batches.meta.txt", *reversed(records)]
    files = {f"cifar-10-batches-bin/{name}": b"" for name in names}
    files |= {f"cifar-10-batches-bin/{name}": part.tobytes() for name, part in records.items()}
    return files, records


REVIEWS = {
    "aclImdb/README": b"no review",
    "aclImdb/train/urls_pos.txt": b"no review either",
    "aclImdb/train/pos/0_9.txt": b"  Splendid \xc3\xa9tude.<br />\n",
    "aclImdb/train/pos/1_7.txt": b"Good.",
    "aclImdb/train/neg/0_3.txt": b"Dull.",
    "aclImdb/train/unsup/0_0.txt": b"Unlabelled.",
    "aclImdb/train/unsup/1_0.txt": b"Unlabelled too.",
    "aclImdb/test/neg/0_2.txt": b"Bad.",
    "aclImdb/test/pos/0_10.txt": b"Great.",
}


def jpeg(size=(30, 20), mode="RGB"):
    pixels = GENERATOR.bytes(size[0] * size[1] * len(mode))
    stream = io.BytesIO()
    Image.frombytes(mode, size, pixels).save(stream, "jpeg")
    return stream.getvalue()


def without_jfif(data):
    """Cuts the APP0 segment out, which is what most of the catalogue's corrupt images lack."""
    length = struct.unpack(">H", data[4:6])[0]
    return data[:2] + data[4 + length :]


def with_comment_first(data, length):
    return data[:2] + b"\xff\xfe" + struct.pack(">H", length + 2) + bytes(length) + data[2:]


def pets():
    """A zip file's members, and which of them are to be kept."""
    good = jpeg()
    kept = {
        "PetImages/Cat/0.jpg": jpeg(),
        "PetImages/Cat/12.jpg": jpeg((9, 50)),
        "PetImages/Dog/0.jpg": jpeg(mode="L"),
        "PetImages/Dog/5.jpg": with_comment_first(good, 200),  # the catalogue sees 512 bytes
    }
    skipped = {
        "PetImages/Cat/1.jpg": without_jfif(good),
        "PetImages/Dog/1.jpg": good[: len(good) // 2],
        "PetImages/Dog/2.jpg": b"",
        "PetImages/Dog/3.jpg": with_comment_first(good, 600),
    }
    other = {"PetImages/Cat/Thumbs.db": b"no image", "readme[1].txt": b"JFIF"}
    return other | skipped | kept, kept


def write_multi30k(raw):
    raw.mkdir(exist_ok=True)
    # U+2028 is a line separator to Python's splitlines, and here a part of the sentence.
    lines = [("A dog\u2028runs.", "Ein Hund läuft."), ("Two men.", "Zwei Männer."), ("A", "Ein")]
    for part, count in (("train", 3), ("val", 2), ("test_2016_flickr", 1)):
        for position, code in enumerate(("en", "de")):
            text = "".join(f"{line[position]}\n" for line in lines[:count]).encode()
            (raw / f"{part}.{code}.gz").write_bytes(gzip.compress(text))
    return [{"en": en.encode(), "de": de.encode()} for en, de in lines]
