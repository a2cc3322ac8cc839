"""Each data set is written from tiny originals and read back by TFDS, every example compared."""

import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jdl.data.prepare import prepare
from jdl.data.recipes import RECIPES
from jdl.errors import UserError
from tests.data.originals import (
    GENERATOR,
    REVIEWS,
    cifar_files,
    contents,
    in_order,
    jpeg,
    pets,
    read,
    same,
    write_folder,
    write_mnist,
    write_multi30k,
    write_tar,
)


def features(path) -> Any:
    return tfds.builder_from_directory(path).info.features


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


def test_cifar100(tmp_path):
    counts = {"train": 5, "test": 3}
    rows = {split: GENERATOR.integers(0, 20, (n, 3074), np.uint8) for split, n in counts.items()}
    files = {f"cifar-100-binary/{split}.bin": array.tobytes() for split, array in rows.items()}
    write_tar(tmp_path / "cifar-100-binary.tar.gz", files)
    path = prepare("cifar100", raw=tmp_path, data_dir=tmp_path)
    for split, array in rows.items():
        expected = {
            index: {
                "id": f"{split}_{index:05d}".encode(),
                "image": row[2:].reshape(3, 32, 32).transpose(1, 2, 0),
                "label": row[1],
                "coarse_label": row[0],
            }
            for index, row in enumerate(array)
        }
        assert same(read(path, split), in_order(split, expected))
    names = features(path)["label"].names, features(path)["coarse_label"].names
    assert (names[0][0], names[0][99], names[1][0]) == ("apple", "worm", "aquatic_mammals")

    rows["test"][1, 0] = 20  # a superclass that does not exist
    files["cifar-100-binary/test.bin"] = rows["test"].tobytes()
    write_folder(tmp_path / "raw", files)
    with pytest.raises(UserError, match="label 20 is not one of 0 to 19"):
        prepare("cifar100", raw=tmp_path / "raw", data_dir=tmp_path / "other")


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
    messages = []
    path = prepare(
        "cats_vs_dogs", raw=tmp_path / "pets.zip", data_dir=tmp_path, report=messages.append
    )
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
    assert "skipped 4 damaged examples" in messages
    assert any("23,262" in sentence for sentence in messages)

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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_versions_and_features_are_those_of_the_catalogue(tmp_path, recipe):
    if recipe.name in ("multi30k", "camvid"):
        pytest.skip("not in the catalogue")
    if recipe.name == "spoken_digit":
        pytest.skip("the catalogue's feature Audio needs TensorFlow")
    catalogue: Any = tfds.builder(recipe.name, data_dir=tmp_path)
    assert str(tmp_path / recipe.path) == catalogue.data_dir
    assert catalogue.info.supervised_keys == recipe.supervised
    ours, theirs = recipe.features(tfds.features), dict(catalogue.info.features.items())
    assert ours.keys() == theirs.keys()
    for name, feature in theirs.items():
        assert type(ours[name]) is type(feature)
        assert ours[name].get_tensor_info() == feature.get_tensor_info()
    # The catalogue reads the names of CIFAR's classes from the archive.
    if "label" in ours and not recipe.name.startswith("cifar"):
        assert ours["label"].names == theirs["label"].names


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
    messages = []
    arguments = {"raw": tmp_path / "raw", "data_dir": tmp_path, "report": messages.append}
    assert prepare("mnist", **arguments) == path
    assert messages == [f"{path} is already prepared"]
    assert contents(path) == before
    prepare("mnist", overwrite=True, **arguments)
    assert contents(path) != before
    assert os.listdir(path.parent) == ["3.0.1"]


def test_a_folder_that_holds_no_data_set_is_not_taken_for_one(tmp_path):
    write_mnist(tmp_path / "raw")
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a prepared data set"):
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
        timeout=600,
    )


def test_a_killed_run_leaves_nothing_that_is_taken_for_a_data_set(tmp_path):
    examples = write_mnist(tmp_path / "raw")
    code = """
        import os, signal, sys
        from pathlib import Path
        import jdl.data.raw as raw
        from jdl.data.prepare import prepare

        encode, calls = raw.encode_png, []
        def encode_and_die(image):  # in the middle of the second split
            calls.append(image)
            if len(calls) == 23:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(image)
        raw.encode_png = encode_and_die
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
