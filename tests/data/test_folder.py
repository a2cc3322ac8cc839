"""Images in folders: labels by folder or file, and errors that name unreadable files."""

import logging

import numpy as np
import pytest
from PIL import Image

import jdl
from jdl.data import ImageFolder, Resize, Scale
from jdl.errors import UserError
from jdl.models import MLP
from jdl.optimizers import Adam
from jdl.tasks import Classification


def paint(path, shade, size=(9, 7), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(len(str(path))).integers(0, 20, (*size[::-1], 3), np.uint8)
    Image.fromarray(grain + np.uint8(shade)).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for index in range(12):
        paint(tmp_path / "dark" / f"{index}.png", 10)
        paint(tmp_path / "light" / "more" / f"{index}.jpg", 200, size=(8, 10))
    (tmp_path / "light" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_a_class_and_its_files_are_decoded(folder):
    source = ImageFolder(str(folder)).load()["train"]
    assert len(source) == 24
    labels = [int(source[i]["label"]) for i in range(24)]
    assert labels == [0] * 12 + [1] * 12
    first = source[0]["image"]
    assert first.shape == (7, 9, 3)
    assert first.dtype == np.uint8
    gray = ImageFolder(str(folder), mode="L").load()["train"][0]["image"]
    assert gray.shape == (7, 9, 1)
    np.testing.assert_allclose(gray[..., 0], first @ [0.299, 0.587, 0.114], atol=1)


def test_folders_of_splits_are_the_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label in ("a", "b"):
            for index in range(count):
                paint(tmp_path / split / label / f"{index}.png", 50)
    sizes = {name: len(s) for name, s in ImageFolder(str(tmp_path)).load().items()}
    assert sizes == {"train": 6, "test": 4}


def test_labels_may_come_from_a_file(folder):
    table = folder / "labels.csv"
    table.write_text("file,label\ndark/3.png,night\nlight/more/0.jpg,day\n")
    source = ImageFolder(str(folder), labels_file=str(table)).load()["train"]
    assert [int(source[i]["label"]) for i in range(2)] == [1, 0]


def test_one_unreadable_image_is_named_and_the_rest_trains(folder, caplog, tmp_path_factory):
    broken = folder / "dark" / "5.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = ImageFolder(
        str(folder),
        transforms=(Resize(height=4, width=4),),
        device_transforms=(Scale(),),
        validation_fraction=0.0,
    )
    with caplog.at_level(logging.WARNING):
        experiment = jdl.Experiment(
            model=MLP((8,), 2),
            task=Classification(),
            data=data,
            optimizer=Adam(1e-2),
            epochs=20,
            batch_size=8,
        )
        run = jdl.train(experiment, tmp_path_factory.mktemp("run") / "run")
    assert str(broken) in caplog.text
    assert run.evaluate("train")["accuracy"] == 1


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("nothing", {"path": "no/such"}, "no/such is no folder"),
        ("one class", {}, "1 classes, where two are needed"),
        (
            "many broken",
            {"max_unreadable": 2},
            "3 of 24 images cannot be read, more than data.max_unreadable = 2",
        ),
        ("labels", {"label_column": "lable"}, r"no column 'lable' .*did you mean 'label'\?"),
        ("labels", {"labels_text": "file,label\nx.png,a\n"}, "row 1 names x.png, not in"),
        ("labels", {"labels_text": "file,label\ndark/0.png,\n"}, "row 1 has no label"),
    ],
)
def test_a_mistake_is_one_sentence(folder, change, options, message):
    if change == "one class":
        (folder / "dark").rename(folder / "light" / "dark")
    if change == "many broken":
        for index in range(3):
            (folder / "dark" / f"{index}.png").write_bytes(b"x")
    if change == "labels":
        table = folder / "labels.csv"
        table.write_text(options.pop("labels_text", "file,label\ndark/0.png,a\n"))
        options = {"labels_file": str(table), **options}
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(options.pop("path", str(folder)), **options).load()
    assert len(str(caught.value).splitlines()) == 1
