"""Each data set is written from tiny originals and read back by TFDS, every example compared."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import jdl.data.prepare
from jdl.data.download import checksums, fetch
from jdl.data.prepare import RECIPES, prepare
from jdl.errors import UserError

GENERATOR = np.random.default_rng(0)


def read(path, split, **options):
    builder: Any = tfds.builder_from_directory(path)
    return list(builder.as_data_source(split, **options))


def features(path) -> Any:
    return tfds.builder_from_directory(path).info.features


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


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_idx_images(tmp_path, name, zipped):
    examples = write_mnist(tmp_path / "raw", zipped)
    path = prepare(name, raw=tmp_path / "raw", data_dir=tmp_path)
    assert path == tmp_path / name / "3.0.1"
    for split in ("train", "test"):
        got = read(path, split)
        assert got[0]["image"].dtype == np.uint8
        assert same(got, in_order(split, examples[split]))
    info = tfds.builder_from_directory(path).info
    assert (info.name, str(info.version), set(info.splits)) == (name, "3.0.1", {"train", "test"})
    assert info.supervised_keys == ("image", "label")
    assert features(path)["image"].shape == (28, 28, 1)
    first = features(path)["label"].int2str(0)
    assert first == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[name]
    assert features(path)["label"].num_classes == 10


@pytest.mark.parametrize("where", ["archive", "folder", "parent", "beside"])
def test_cifar10(tmp_path, where):
    files, records = cifar_files()
    raw = {
        "archive": tmp_path / "cifar-10-binary.tar.gz",
        "beside": tmp_path,
        "folder": tmp_path / "cifar-10-batches-bin",
        "parent": tmp_path,
    }[where]
    if where in ("archive", "beside"):
        write_tar(tmp_path / "cifar-10-binary.tar.gz", files)
    else:
        write_folder(tmp_path, files)
    path = prepare("cifar10", raw=raw, data_dir=tmp_path / "data")
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    for split, names in (("train", train), ("test", ["test_batch.bin"])):
        rows = np.concatenate([records[name] for name in names])
        expected = {
            index: {
                "id": f"{split}_{index:05d}".encode(),
                # Red, green and blue planes follow each other, row by row.
                "image": np.stack(
                    [row[1 + 1024 * c :][:1024].reshape(32, 32) for c in range(3)], 2
                ),
                "label": row[0],
            }
            for index, row in enumerate(rows)
        }
        assert same(read(path, split), in_order(split, expected))
    labels = features(path)["label"].names
    assert (labels[0], labels[3], labels[9]) == ("airplane", "cat", "truck")


def test_imdb_reviews(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    hostile = {"../outside.txt": b"x", "aclImdb/train/pos/../../../../outside.txt": b"x"}
    write_tar(raw / "aclImdb_v1.tar.gz", REVIEWS | hostile)
    path = prepare("imdb_reviews", raw=raw, data_dir=tmp_path / "data")
    assert path == tmp_path / "data/imdb_reviews/plain_text/1.0.0"
    places = {
        "train": ("aclImdb/train/pos/", "aclImdb/train/neg/"),
        "test": ("aclImdb/test/",),
        "unsupervised": ("aclImdb/train/unsup/",),
    }
    labels = {"neg": 0, "pos": 1, "unsup": -1}
    for split, starts in places.items():
        expected = {
            name: {"text": text.strip(), "label": labels[name.split("/")[2]]}
            for name, text in REVIEWS.items()
            if name.startswith(starts)
        }
        assert same(read(path, split), in_order(split, expected))
    assert features(path)["label"].names == ["neg", "pos"]
    default = json.loads((tmp_path / "data/imdb_reviews/.config/metadata.json").read_text())
    assert default == {"default_config_name": "plain_text"}
    assert not list(tmp_path.rglob("outside.txt"))

    write_folder(tmp_path / "extracted", REVIEWS)
    again = prepare("imdb_reviews", raw=tmp_path / "extracted", data_dir=tmp_path / "other")
    assert contents(again) == contents(path)


def test_cats_vs_dogs(tmp_path):
    files, kept = pets()
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    said = []
    path = prepare("cats_vs_dogs", raw=tmp_path / "pets.zip", data_dir=tmp_path, report=said.append)
    expected = {
        name: {
            "image": data,
            "image/filename": name.encode(),
            "label": ["Cat", "Dog"].index(name.split("/")[1]),
        }
        for name, data in kept.items()
    }
    raw_images = {"image": tfds.decode.SkipDecoding()}
    assert same(read(path, "train", decoders=raw_images), in_order("train", expected))
    for example in read(path, "train"):
        with Image.open(io.BytesIO(kept[example["image/filename"].decode()])) as image:
            assert np.array_equal(example["image"], np.asarray(image.convert("RGB")))
    assert features(path)["label"].names == ["cat", "dog"]
    assert "skipped 4 damaged examples" in said
    assert any("23,262" in sentence for sentence in said)

    write_folder(tmp_path / "extracted", files)
    again = prepare(
        "cats_vs_dogs", raw=tmp_path / "extracted" / "PetImages", data_dir=tmp_path / "other"
    )
    assert contents(again) == contents(path)


def test_an_image_of_four_channels_becomes_rgb(tmp_path):
    data = jpeg(mode="CMYK")
    # Pillow writes no JFIF segment for CMYK; others do.
    data = data[:2] + jpeg()[2:20] + data[2:]
    write_folder(tmp_path, {"PetImages/Cat/0.jpg": data})
    path = prepare("cats_vs_dogs", raw=tmp_path, data_dir=tmp_path)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    (example,) = read(path, "train")
    assert np.array_equal(example["image"], expected)


@pytest.mark.parametrize("given", ["file", "folder"])
def test_tiny_shakespeare_is_cut_by_characters(tmp_path, given):
    text = "".join(chr(0xE0 + number % 20) for number in range(101))  # two bytes each
    (tmp_path / "input.txt").write_bytes(text.encode())
    raw = tmp_path / "input.txt" if given == "file" else tmp_path
    path = prepare("tiny_shakespeare", raw=raw, data_dir=tmp_path)
    parts = {"train": text[:90], "validation": text[90:95], "test": text[95:]}
    for split, part in parts.items():
        assert read(path, split) == [{"text": part.encode()}]


def test_multi30k(tmp_path):
    pairs = write_multi30k(tmp_path / "raw")
    path = prepare("multi30k", raw=tmp_path / "raw", data_dir=tmp_path)
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        assert same(read(path, split), in_order(split, dict(enumerate(pairs[:count]))))


def test_the_same_originals_give_the_same_bytes(tmp_path):
    write_mnist(tmp_path / "raw")
    one, two = (
        contents(prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path / part)) for part in "ab"
    )
    assert one == two


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path):
    write_mnist(tmp_path / "raw")
    path = prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path)
    before = contents(path)
    write_mnist(tmp_path / "raw")  # other digits
    said = []
    arguments = {"raw": tmp_path / "raw", "data_dir": tmp_path, "report": said.append}
    assert prepare("mnist", **arguments) == path
    assert said == [f"{path} is already prepared"]
    assert contents(path) == before
    prepare("mnist", overwrite=True, **arguments)
    assert contents(path) != before
    assert os.listdir(path.parent) == ["3.0.1"]


def test_a_folder_that_holds_no_data_set_is_not_taken_for_one(tmp_path):
    write_mnist(tmp_path / "raw")
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no prepared data set"):
        prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path)


def test_a_failure_leaves_the_data_set_as_it_was(tmp_path):
    write_mnist(tmp_path / "raw")
    path = prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path)
    before = contents(path)
    broken = tmp_path / "raw" / "t10k-labels-idx1-ubyte.gz"  # read after the training split
    broken.write_bytes(broken.read_bytes()[:-4])
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte"):
        prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path, overwrite=True)
    assert contents(path) == before
    assert os.listdir(path.parent) == ["3.0.1"]


def run(code, *arguments, **environment):
    """Runs Python code in a process of its own, which may import what this one may."""
    paths = os.pathsep.join([*environment.pop("first", []), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_killed_run_leaves_nothing_that_is_taken_for_a_data_set(tmp_path):
    examples = write_mnist(tmp_path / "raw")
    code = """
        import os, signal, sys
        from pathlib import Path
        import jdl.data.raw as raw
        from jdl.data.prepare import prepare

        encode, calls = raw._png, []
        def encode_and_die(image):  # in the middle of the second split
            calls.append(image)
            if len(calls) == 23:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(image)
        raw._png = encode_and_die
        prepare("mnist", raw=Path(sys.argv[1]), data_dir=Path(sys.argv[2]))
    """
    done = run(code, tmp_path / "raw", tmp_path)
    assert done.returncode == -9, done.stderr
    left = os.listdir(tmp_path / "mnist")
    assert left, "it was killed before it wrote anything"
    assert all(name.startswith(".") for name in left)
    path = prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path)
    assert same(read(path, "test"), in_order("test", examples["test"]))


def test_tensorflow_is_never_imported(tmp_path):
    # A decoy that can be imported: so the test also fails where no TensorFlow is installed.
    (tmp_path / "decoy/tensorflow").mkdir(parents=True)
    (tmp_path / "decoy/tensorflow/__init__.py").write_text("")
    raws = {name: tmp_path / name for name in ("mnist", "cifar10", "cats_vs_dogs", "imdb_reviews")}
    write_mnist(raws["mnist"])
    write_folder(raws["cifar10"], cifar_files()[0])
    write_folder(raws["cats_vs_dogs"], pets()[0])
    write_folder(raws["imdb_reviews"], REVIEWS)
    code = """
        import sys
        from pathlib import Path
        from jdl.data.prepare import prepare

        late = ("tensorflow_datasets", "grain", "sklearn", "orbax")
        print([name for name in late if name in sys.modules])
        root = Path(sys.argv[1])
        for name in sys.argv[2:]:
            prepare(name, raw=root / name, data_dir=root / "data", report=lambda sentence: None)
        print("tensorflow_datasets" in sys.modules, "tensorflow" in sys.modules)
        import tensorflow
        print(tensorflow.__file__)
    """
    done = run(code, tmp_path, *raws, first=[str(tmp_path / "decoy")])
    assert done.returncode == 0, done.stderr
    decoy = tmp_path / "decoy/tensorflow/__init__.py"
    assert done.stdout.splitlines() == ["[]", "True False", str(decoy)]


def cut_gzip(raw):
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(raw):
    path = raw / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite(name, change):
    def damage(raw):
        data = bytearray(gzip.decompress((raw / name).read_bytes()))
        (raw / name).write_bytes(gzip.compress(bytes(change(data))))

    return damage


def other_labels(raw):
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))


def other_size(raw):
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((7, 8, 8), "u1"))))


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: (raw / LABELS).unlink(), r"lacks train-labels-idx1-ubyte \(each may end"),
        (cut_gzip, f"{IMAGES} is truncated, damaged or unreadable"),
        (flip_bit, f"{IMAGES} is truncated, damaged or unreadable"),
        (rewrite(IMAGES, lambda data: b"\x00\x00\x08\x01" + data[4:]), "does not begin like"),
        (rewrite(IMAGES, lambda data: data[:-1]), "says 15680 bytes, 15679 are there"),
        (rewrite(IMAGES, lambda data: data + b"x"), "says 15680 bytes, 15681 are there"),
        (rewrite(LABELS, lambda data: data[:-1] + b"\x0a"), "it holds the label 10"),
        (rewrite(LABELS, lambda data: b""), "does not begin like"),
        (other_labels, "holds 7 images but .* 6 labels"),
        (other_size, r"images of \(8, 8\) pixels"),
    ],
)
def test_damaged_mnist(tmp_path, damage, message):
    write_mnist(tmp_path / "raw")
    damage(tmp_path / "raw")
    with pytest.raises(UserError, match=message) as caught:
        prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mnist" / "3.0.1").exists()


def test_damaged_archives(tmp_path):
    write_tar(tmp_path / "reviews.tar.gz", REVIEWS)
    whole = (tmp_path / "reviews.tar.gz").read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum, which lies behind what tarfile reads
    for data in (whole[: len(whole) // 2], whole[:-4], bytes(flipped), b"no archive"):
        (tmp_path / "damaged.tar.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"damaged\.tar\.gz is truncated, damaged") as caught:
            prepare("imdb_reviews", raw=tmp_path / "damaged.tar.gz", data_dir=tmp_path)
        assert "\n" not in str(caught.value)

    data = jpeg()
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("PetImages/Cat/0.jpg", data)
    damaged = (tmp_path / "pets.zip").read_bytes().replace(data[-9:], bytes(9))
    (tmp_path / "pets.zip").write_bytes(damaged)
    with pytest.raises(UserError, match=r"pets\.zip is truncated, damaged"):
        prepare("cats_vs_dogs", raw=tmp_path / "pets.zip", data_dir=tmp_path)


def test_damaged_cifar10(tmp_path):
    files, _ = cifar_files()
    batch = "cifar-10-batches-bin/data_batch_3.bin"
    for data, message in (
        (files[batch][:-1], r"data_batch_3\.bin in .* is damaged: 15364 bytes"),
        (b"\x0b" + files[batch][1:], "holds the label 11"),
        (None, "lacks cifar-10-batches-bin/data_batch_3.bin$"),
    ):
        changed = {name: part for name, part in (files | {batch: data}).items() if part is not None}
        write_tar(tmp_path / "cifar-10-binary.tar.gz", changed)
        with pytest.raises(UserError, match=message):
            prepare("cifar10", raw=tmp_path, data_dir=tmp_path)


@pytest.mark.parametrize("found", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_pickles_are_refused(tmp_path, found):
    (tmp_path / found).mkdir()
    for raw in (tmp_path, tmp_path / found):
        with pytest.raises(UserError, match="nothing is ever unpickled"):
            prepare("cifar10", raw=raw, data_dir=tmp_path)


def test_damaged_texts(tmp_path):
    raw = tmp_path / "raw"
    write_multi30k(raw)
    (raw / "val.de.gz").write_bytes(gzip.compress(b"Eins\n"))
    with pytest.raises(UserError, match=r"val\.en\.gz has 2 lines but .*val\.de\.gz has 1"):
        prepare("multi30k", raw=raw, data_dir=tmp_path)
    for part in ("val.en.gz", "val.de.gz"):
        (raw / part).write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="hold no examples of 'validation'"):
        prepare("multi30k", raw=raw, data_dir=tmp_path)
    (tmp_path / "input.txt").write_bytes(b"To be or not \xff")
    with pytest.raises(UserError, match=r"input\.txt is truncated, damaged or unreadable"):
        prepare("tiny_shakespeare", raw=tmp_path, data_dir=tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jdl.data.archives.LARGEST_BYTES", 10_000)
    (tmp_path / "input.txt").write_bytes(gzip.compress(bytes(20_000)))
    with pytest.raises(UserError, match="a file in it passes 10000 bytes"):
        prepare("tiny_shakespeare", raw=tmp_path, data_dir=tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("there", [True, False])
def test_originals_that_are_not_there(tmp_path, recipe, there):
    raw = tmp_path / "raw"
    if there:
        raw.mkdir()
    with pytest.raises(UserError) as caught:
        prepare(recipe.name, raw=raw, data_dir=tmp_path)
    assert str(raw) in str(caught.value)
    for file in recipe.files:
        assert file.removesuffix(".gz") in str(caught.value)


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"unknown data set 'minst'; did you mean 'mnist'\?"):
        prepare("minst")


def test_a_place_that_cannot_be_written(tmp_path):
    write_mnist(tmp_path / "raw")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write in .*file/data"):
        prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path / "file" / "data")
    with pytest.raises(UserError, match=r"cannot write in .*file/data"):
        prepare("mnist", data_dir=tmp_path / "file" / "data")


def test_a_read_only_directory(tmp_path):
    write_mnist(tmp_path / "raw")
    (tmp_path / "data").mkdir(mode=0o555)
    if os.access(tmp_path / "data", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(UserError, match="Permission denied"):
        prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path / "data")
    with pytest.raises(UserError, match="Permission denied"):
        prepare("mnist", data_dir=tmp_path / "data")


def test_a_disk_that_is_full(tmp_path):
    resource = pytest.importorskip("resource")
    write_mnist(tmp_path / "raw")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the longest file
    try:
        with pytest.raises(UserError, match=r"cannot write in .*File too large"):
            prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "data" / "mnist") == []


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says of those called `short` that they are longer than they are."""

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "short" in self.path:
            value = str(int(value) + 5)
        super().send_header(keyword, value)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """Serves the folder `site` of the temporary directory."""
    (tmp_path / "site").mkdir()

    def handler(*arguments):
        return Handler(*arguments, directory=str(tmp_path / "site"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def from_site(monkeypatch, name, site):
    recipes = [
        dataclasses.replace(recipe, urls=tuple(f"{site}/{file}" for file in recipe.files))
        for recipe in RECIPES
        if recipe.name == name
    ]
    monkeypatch.setattr(jdl.data.prepare, "RECIPES", recipes)


def test_originals_are_downloaded_once(tmp_path, site, monkeypatch):
    from_site(monkeypatch, "mnist", site)
    examples = write_mnist(tmp_path / "site")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    said = []
    path = prepare("mnist", report=said.append)
    assert path == tmp_path / "data/mnist/3.0.1"
    assert same(read(path, "train"), in_order("train", examples["train"]))
    assert contents(tmp_path / "data/downloads/mnist") == contents(tmp_path / "site")
    assert len([sentence for sentence in said if sentence.startswith("downloading")]) == 4

    for file in (tmp_path / "site").iterdir():
        file.unlink()
    said.clear()
    prepare("mnist", overwrite=True, report=said.append)
    assert not [sentence for sentence in said if sentence.startswith("downloading")]


def test_without_network(tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        site = f"http://127.0.0.1:{closed.getsockname()[1]}"
        from_site(monkeypatch, "cifar10", site)
        with pytest.raises(UserError) as caught:
            prepare("cifar10", data_dir=tmp_path)
    assert f"{site}/cifar-10-binary.tar.gz (" in str(caught.value)
    assert "--from DIR, a directory with cifar-10-binary.tar.gz" in str(caught.value)
    with pytest.raises(UserError, match="holds neither cifar-10-binary"):
        prepare("cifar10", data_dir=tmp_path, download=False)


def test_a_download_is_checked(tmp_path, site):
    data = b"the original"
    for name in ("whole", "short", "empty"):
        (tmp_path / "site" / name).write_bytes(b"" if name == "empty" else data)
    folder = tmp_path / "downloads"
    known = SimpleNamespace(size=len(data), checksum=hashlib.sha256(data).hexdigest())
    other = SimpleNamespace(size=len(data), checksum=hashlib.sha256(b"The original").hexdigest())
    for name, record, message in (
        ("whole", other, "its SHA-256 differs"),
        ("short", None, "gave only 12 bytes"),
        ("empty", None, "gave only 0 bytes"),
        ("absent", None, r"cannot download .*/absent \(HTTP Error 404: .*--from DIR"),
    ):
        url = f"{site}/{name}"
        with pytest.raises(UserError, match=message):
            fetch((url,), folder, known={url: record} if record else {}, report=len)
        assert list(folder.iterdir()) == []
    fetch((f"{site}/whole",), folder, known={f"{site}/whole": known}, report=len)
    assert contents(folder) == {"whole": data}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_catalogue_knows_what_is_downloaded(recipe):
    known = checksums(recipe.name)
    if recipe.name == "multi30k":  # not in the catalogue
        assert known == {}
    else:
        assert all(len(known[url].checksum) == 64 for url in recipe.urls)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_versions_and_features_are_those_of_the_catalogue(tmp_path, recipe):
    if recipe.name == "multi30k":
        pytest.skip("not in the catalogue")
    catalogue: Any = tfds.builder(recipe.name, data_dir=tmp_path)
    assert str(tmp_path / recipe.path) == catalogue.data_dir
    assert catalogue.info.supervised_keys == recipe.supervised
    ours, theirs = recipe.features(tfds.features), dict(catalogue.info.features.items())
    assert ours.keys() == theirs.keys()
    for name, feature in theirs.items():
        assert type(ours[name]) is type(feature)
        assert ours[name].get_tensor_info() == feature.get_tensor_info()
    # The catalogue reads the names of CIFAR-10 from the archive.
    if "label" in ours and recipe.name != "cifar10":
        assert ours["label"].names == theirs["label"].names
