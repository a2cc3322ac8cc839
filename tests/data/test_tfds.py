"""TensorFlow Datasets read from array_record: search path, and no import of TensorFlow."""

import gzip
import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets

from jdl.data import BPE, TFDS, Documents, Selection, Texts, Tokens, Words
from jdl.data.prepare import prepare
from jdl.data.splits import Splits
from jdl.data.tfds import check_tfds
from jdl.errors import UserError
from tests.data.originals import idx

SHARED = Path(__file__).parents[3] / "shared" / "tfds"


def quiet(sentence):
    """Takes what `prepare` reports."""


@pytest.fixture(scope="module")
def digits():
    """The examples of a tiny MNIST by split."""
    generator = np.random.default_rng(0)
    return {
        split: {
            "image": generator.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
            "label": generator.integers(0, 10, count, dtype=np.uint8),
        }
        for split, count in (("train", 20), ("test", 7))
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory, digits):
    """A data directory that holds a tiny `mnist` and `imdb_reviews`, written by `jdl prepare`."""
    raw, root = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("sets")
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = digits[split]["image"][..., 0], digits[split]["label"]
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    prepare("mnist", raw=raw, data_dir=root, report=quiet)
    for name in ("train/pos/0_9", "train/neg/0_3", "train/unsup/0_0", "test/neg/0_2"):
        path = raw / f"aclImdb/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (raw / "aclImdb/test/pos").mkdir()
    (raw / "aclImdb/test/pos/0_8.txt").write_text("Good.")
    prepare("imdb_reviews", raw=raw, data_dir=root, report=quiet)
    return root


@pytest.fixture
def no_network(monkeypatch):
    """Lists whom the test tried to reach."""
    tried = []

    def refuse(*args, **options):
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def same_examples(source, expected):
    """Whether a split holds these examples, in whatever order."""
    found = [
        (int(e["label"]), e["image"].tobytes()) for e in map(source.__getitem__, range(len(source)))
    ]
    return sorted(found) == sorted(
        (int(label), image.tobytes())
        for image, label in zip(expected["image"], expected["label"], strict=True)
    )


def test_a_set_is_found_by_the_environment_or_by_its_directory(root, digits, monkeypatch, tmp_path):
    with_directory = TFDS("mnist", data_dir=str(root)).splits()
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    for splits in (with_directory, TFDS("mnist").splits()):
        assert set(splits) == {"train", "test", "validation"}
        assert same_examples(splits["test"], digits["test"])
        assert len(splits["validation"]) == 2
    both = TFDS("mnist", validation_fraction=0.0).splits()
    assert set(both) == {"train", "test"}
    assert same_examples(both["train"], digits["train"])
    with pytest.raises(UserError, match=f"is not in {re.escape(str(tmp_path))}"):
        TFDS("mnist", data_dir=str(tmp_path)).splits()


def test_several_examples_at_once_are_those_one_by_one(root):
    source = TFDS("mnist", data_dir=str(root)).load()["train"]
    restored = pickle.loads(pickle.dumps(source))  # as a worker process is sent it
    many = restored.__getitems__([5, 0, 5])
    for one, index in zip(many, (5, 0, 5), strict=True):
        assert one.keys() == {"image", "label"}
        assert all(np.array_equal(one[name], source[index][name]) for name in one)


def test_classes_have_the_names_of_the_catalogue(root, tmp_path):
    data = TFDS("imdb_reviews", data_dir=str(root), validation_fraction=0.0)
    assert data.output_names() == ("neg", "pos")
    assert TFDS("mnist", data_dir=str(root)).output_names() == ()  # the digits are their ids
    (tmp_path / "review.txt").write_text("Good.")
    assert data.reader()(tmp_path / "review.txt")["text"][0] == b"Good."


EXPERIMENT = """
from jdl import Experiment
from jdl.data import TFDS, Scale
from jdl.models import MLP

experiment = Experiment(
    model=MLP(widths=(4,)), data=TFDS("mnist", device_transforms=(Scale(),)), steps=2, batch_size=4
)
"""


def test_a_run_needs_neither_tensorflow_nor_a_network(root, tmp_path):
    # A decoy that tells when it is imported, so that the test means something without TensorFlow.
    decoy = tmp_path / "decoy/tensorflow/__init__.py"
    decoy.parent.mkdir(parents=True)
    decoy.write_text("print('IMPORTED')\nraise ImportError('a decoy')\n")
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    code = """
        import socket, sys
        from jdl.cli.main import main

        def refuse(*args):
            print("CONNECTED", args)
            raise OSError("no network in this test")

        socket.socket.connect = socket.getaddrinfo = refuse
        code = main(["train", "tiny.py", "--workdir", "run", "--data.data-dir", sys.argv[1]])
        print("code", code, "tensorflow_datasets" in sys.modules)
        try:
            import tensorflow
        except ImportError as error:
            print(error)
    """
    paths = os.pathsep.join([str(decoy.parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(root)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["code 0 True", "IMPORTED", "a decoy"]
    assert done.stdout.count("IMPORTED") == 1
    assert "CONNECTED" not in done.stdout
    data = json.loads((tmp_path / "run/environment.json").read_text())["data"]
    assert {name: part["count"] for name, part in data.items()} == {
        "train": 18,
        "test": 7,
        "validation": 2,
    }
    assert {(part["source"], part["version"]) for part in data.values()} == {("mnist", "3.0.1")}


def test_a_missing_set_is_an_error_before_anything_is_compiled_or_fetched(tmp_path):
    code = """
        import socket, sys
        def connect(*_):
            print("CONNECTED", file=sys.stderr)
            raise OSError
        socket.socket.connect = connect
        from jdl.cli.main import main
        sys.exit(main(sys.argv[1:]))
    """
    words = ["train", "mnist_mlp", "--workdir", tmp_path / "run"]
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    done = subprocess.run(
        command,
        env=os.environ | {"TFDS_DATA_DIR": str(tmp_path), "JAX_LOG_COMPILES": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()  # JAX would tell here of what it compiles
    assert f"'mnist' is not in {tmp_path}" in sentence
    for way in ("--data.data-dir", "TFDS_DATA_DIR", "`jdl prepare mnist`"):
        assert way in sentence
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_unless_asked_for(tmp_path, no_network, monkeypatch, root):
    asked = []

    def spy(name, **options):
        asked.append((name, options["data_dir"]))
        shutil.copytree(root / name, options["data_dir"] / name)
        return options["data_dir"] / name / "3.0.1"

    monkeypatch.setattr("jdl.data.prepare.prepare", spy)
    for name in ("mnist", "mnist:3.0.1", "imdb_reviews/plain_text", "food101"):
        with pytest.raises(UserError, match=f"data set '{name}' is not in"):
            Splits(TFDS(name, data_dir=str(tmp_path)))
    assert asked == []
    assert no_network == []
    assert len(TFDS("mnist", data_dir=str(tmp_path), download=True).splits()["test"]) == 7
    assert asked == [("mnist", tmp_path)]


def test_a_version_that_is_not_available_is_not_silently_another(root, tmp_path, monkeypatch):
    def other(name, **options):
        shutil.copytree(root / name, options["data_dir"] / name)
        return options["data_dir"] / name / "3.0.1"

    monkeypatch.setattr("jdl.data.prepare.prepare", other)
    with pytest.raises(UserError, match=r"version 2\.0\.0 is not available; available: 3\.0\.1"):
        TFDS("mnist:2.0.0", data_dir=str(tmp_path), download=True).splits()


def test_a_set_that_is_there_is_not_fetched_again(root, no_network, monkeypatch):
    monkeypatch.setattr("jdl.data.prepare.prepare", None)
    data = TFDS("mnist", data_dir=str(root), download=True)
    assert len(data.splits()["test"]) == 7
    assert no_network == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("minst", "did you mean 'mnist'"),
        ("imdb_review", "did you mean 'imdb_reviews'"),
        ("food101", "tfds build food101 --file_format=array_record"),
        ("mnist:2.0.0", "tfds build mnist:2.0.0"),
        ("mnist", "`jdl prepare mnist --data-dir "),
    ],
)
def test_a_missing_set_names_the_command_that_writes_it(tmp_path, name, hint):
    (tmp_path / "imdb_reviews").mkdir()
    with pytest.raises(UserError, match=f"data set '{name}' is not in .*{hint}") as caught:
        Splits(TFDS(name, data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_set_that_cannot_be_downloaded(tmp_path, monkeypatch):
    asked = []

    def builder(name, **options):
        asked.append((name, options))
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    with pytest.raises(UserError, match=r"'food101' could not be prepared: first line$"):
        Splits(TFDS("food101", data_dir=str(tmp_path), download=True))
    assert asked == [("food101", {"data_dir": tmp_path, "file_format": "array_record"})]


@pytest.mark.parametrize("file_format", ["tfrecord", None])
def test_a_set_prepared_as_tfrecord_gets_the_command_that_converts_it(root, tmp_path, file_format):
    place = tmp_path / "sets"
    shutil.copytree(root / "mnist", place / "mnist")
    path = place / "mnist/3.0.1/dataset_info.json"
    info = json.loads(path.read_text())
    assert info.pop("fileFormat") == "array_record"
    path.write_text(json.dumps(info | ({"fileFormat": file_format} if file_format else {})))
    with pytest.raises(UserError) as caught:
        Splits(TFDS("mnist", data_dir=str(place)))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert f"{place}/mnist/3.0.1 was prepared as tfrecord" in sentence
    assert "--data.data-dir" in sentence
    command = re.search(r"`(tfds .*?)`", sentence)
    assert command, sentence
    tool, verb, *options = shlex.split(command[1])
    given = dict(option.removeprefix("--").split("=") for option in options)
    assert (tool, verb) == ("tfds", "convert_format")
    # The options that it has are the fields of a dataclass, which only TensorFlow lets one import.
    source = Path(tensorflow_datasets.__file__).parent / "scripts/cli/convert_format.py"
    assert all(re.search(rf"^  {name}: ", source.read_text(), re.MULTILINE) for name in given)
    assert given["dataset_version_dir"] == f"{place}/mnist/3.0.1"
    assert given["out_file_format"] == "array_record"
    # Read from where that command puts it, the set is found again.
    out = Path(given["out_dir"])
    shutil.copytree(root / "mnist/3.0.1", out)
    assert len(TFDS("mnist", data_dir=str(out.parents[1])).splits()["test"]) == 7


def test_versions(root, tmp_path, digits):
    for version in ("1.0.0", "3.0.1", "10.0.0"):
        shutil.copytree(root / "mnist/3.0.1", tmp_path / "mnist" / version)
    (tmp_path / "mnist/11.0.0").mkdir()  # prepared by halves
    options = {"data_dir": str(tmp_path), "validation_fraction": 0.0}
    assert TFDS("mnist", **options).full_name() == "mnist:10.0.0"
    for version in ("1.0.0", "3.0.1"):
        data = TFDS(f"mnist:{version}", **options)
        assert data.directory() == tmp_path / "mnist" / version
        assert data.full_name() == f"mnist:{version}"
        assert {p["version"] for p in Splits(data).fingerprints().values()} == {version}
        assert same_examples(data.splits()["train"], digits["train"])
    with pytest.raises(UserError, match=r"'mnist:2\.0\.0' is not in"):
        TFDS("mnist:2.0.0", **options).splits()


@pytest.mark.parametrize(
    "name", ["imdb_reviews", "imdb_reviews/plain_text", "imdb_reviews/plain_text:1.0.0"]
)
def test_configurations(root, name):
    data = TFDS(name, data_dir=str(root))
    assert data.directory() == root / "imdb_reviews/plain_text/1.0.0"
    assert set(data.load()) == {"train", "test"}  # and not the unlabelled texts
    texts = {data.load()["test"][index]["text"] for index in range(2)}
    assert texts == {b"test/neg/0_2", b"Good."}
    with pytest.raises(UserError, match="is not in"):
        TFDS("imdb_reviews/bytes", data_dir=str(root)).splits()


def test_a_fingerprint_changes_with_one_byte(root, tmp_path):
    shutil.copytree(root / "mnist", tmp_path / "mnist")
    data = TFDS("mnist", data_dir=str(tmp_path))
    before = Splits(data).fingerprints()
    assert before == Splits(TFDS("mnist", data_dir=str(root))).fingerprints()
    (path,) = (tmp_path / "mnist/3.0.1").glob("mnist-test.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = Splits(data).fingerprints()
    assert after["test"]["sha256"] != before["test"]["sha256"]
    assert after["train"] == before["train"]


def test_a_damaged_description(root, tmp_path):
    shutil.copytree(root / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist/3.0.1/dataset_info.json"
    info = json.loads(path.read_text())
    splits = [split for split in info["splits"] if split["name"] == "test"]
    path.write_text(json.dumps(info | {"splits": splits}))
    with pytest.raises(UserError, match=r"has no split 'train' \(it has test\)"):
        TFDS("mnist", data_dir=str(tmp_path)).splits()
    path.write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read"):
        TFDS("mnist", data_dir=str(tmp_path)).splits()


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason=f"there is no {SHARED}/mnist")
def test_the_real_mnist():
    splits = TFDS("mnist", data_dir=str(SHARED), validation_fraction=0.0).splits()
    assert {name: len(source) for name, source in splits.items()} == {"train": 60000, "test": 10000}
    examples = [splits["test"][i] for i in range(0, 10000, 100)]
    assert all(e["image"].shape == (28, 28, 1) and e["image"].dtype == np.uint8 for e in examples)
    assert {int(example["label"]) for example in examples} == set(range(10))
    ink = np.mean([example["image"] for example in examples]) / 255
    assert 0.11 < ink < 0.15  # 0.1307 over the training images, as is well known


def test_a_package_that_tfds_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.public_api", None)
    with pytest.raises(UserError, match=r"cannot be imported .*public_api.*pip install"):
        check_tfds()


def test_any_prepared_split_is_read_by_its_name(root):
    reviews = TFDS("imdb_reviews", data_dir=str(root), validation_fraction=0.0)
    assert "unsupervised" not in reviews.splits()
    assert reviews.split("unsupervised")[0]["text"] == b"train/unsup/0_0"
    assert len(reviews.split("test")) == len(reviews.splits()["test"])
    with pytest.raises(UserError, match=r"no split 'unsupervized'.*did you mean 'unsupervised'"):
        reviews.split("unsupervized")


def test_a_further_split_is_read_through_the_sets_that_make_examples_of_texts_and_classes(root):
    reviews = TFDS("imdb_reviews", data_dir=str(root), validation_fraction=0.0)
    encoding = BPE(vocab_size=270)
    for data in (
        Texts(reviews, encoding=encoding, length=8),
        Words(reviews, length=8),
        Documents(reviews, encoding=encoding, length=8),
    ):
        for each in (data, data.with_fitted(data.fit())):
            found, train = each.split("unsupervised")[0], each.splits()["train"][0]
            assert found.keys() == train.keys()
            assert found["tokens"].shape == train["tokens"].shape
            assert np.any(found["tokens"] != train["tokens"])
            assert len(each.split("test")) == len(each.splits()["test"])
    chosen = Selection(reviews, classes=(-1,)).split("unsupervised")  # the label of these texts
    assert [(each["text"], each["label"]) for each in chosen] == [(b"train/unsup/0_0", 0)]
    with pytest.raises(UserError, match="Tokens makes examples of train, validation alone, and no"):
        Tokens(reviews).split("unsupervised")
    with pytest.raises(UserError, match="no split 'more'"):
        Words(reviews).split("more")
