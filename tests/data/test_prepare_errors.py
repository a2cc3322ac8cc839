"""Damaged or missing originals and unwritable places are each refused in one sentence."""

import gzip
import os
import zipfile

import numpy as np
import pytest

from jdl.data.prepare import prepare
from jdl.data.recipes import RECIPES
from jdl.errors import UserError
from tests.data.originals import (
    REVIEWS,
    cifar_files,
    idx,
    jpeg,
    write_mnist,
    write_multi30k,
    write_tar,
)


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
        (rewrite(IMAGES, lambda data: data[:-1]), "gives 15680 bytes, but 15679 follow"),
        (rewrite(IMAGES, lambda data: data + b"x"), "gives 15680 bytes, but 15681 follow"),
        (rewrite(LABELS, lambda data: data[:-1] + b"\x0a"), "label 10 is not one of"),
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
    flipped[-6] ^= 1  # in the checksum, which follows what tarfile reads
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
        (b"\x0b" + files[batch][1:], "label 11 is not one of"),
        (None, "is missing cifar-10-batches-bin/data_batch_3.bin$"),
    ):
        changed = {name: part for name, part in (files | {batch: data}).items() if part is not None}
        write_tar(tmp_path / "cifar-10-binary.tar.gz", changed)
        with pytest.raises(UserError, match=message):
            prepare("cifar10", raw=tmp_path, data_dir=tmp_path)


@pytest.mark.parametrize("found", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_pickles_are_refused(tmp_path, found):
    (tmp_path / found).mkdir()
    for raw in (tmp_path, tmp_path / found):
        with pytest.raises(UserError, match="which is never unpickled"):
            prepare("cifar10", raw=raw, data_dir=tmp_path)


def test_damaged_texts(tmp_path):
    raw = tmp_path / "raw"
    write_multi30k(raw)
    (raw / "val.de.gz").write_bytes(gzip.compress(b"Eins\n"))
    with pytest.raises(UserError, match=r"val\.en\.gz has 2 lines but .*val\.de\.gz has 1"):
        prepare("multi30k", raw=raw, data_dir=tmp_path)
    for part in ("val.en.gz", "val.de.gz"):
        (raw / part).write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="have no examples of 'validation'"):
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
