"""Folders of images as they come: what is a class, what a split, and what is only named."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jdl.data import ImageFolder
from jdl.data.sources import root_indices
from jdl.errors import UserError


def paint(root, *names):
    """Writes a small image under each name."""
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.full((4, 4, 3), shade, np.uint8))
        picture.save(path, format="png" if path.suffix == ".png" else "jpeg")
    return root


def read(root, caplog=None, **options):
    """Classes, sizes of the splits, and the summary."""
    data = ImageFolder(str(root), **options)
    sizes = {name: len(source) for name, source in data.load().items()}
    return data.output_names(), sizes, caplog.text if caplog else ""


TWO = ("cat/0.png", "cat/1.png", "dog/0.png")


@pytest.mark.parametrize(
    "extra",
    [
        ".ipynb_checkpoints/0.png", ".git/0.png", "__MACOSX/0.png", "__macosx/cat/0.png",
        "@eaDir/0.png", "$RECYCLE.BIN/0.png", ".cache/x/0.png", "lost+found/0.png",
        "cat/.ipynb_checkpoints/0.png", "cat/a/b/.hidden/0.png", "dog/__MACOSX/0.png",
        "cat/._0.png", "cat/.DS_Store", "dog/Thumbs.db", "cat/desktop.ini", "Thumbs.db",
    ],
)  # fmt: skip
def test_hidden_and_system_files_are_no_images(tmp_path, extra, caplog):
    paint(tmp_path, *TWO)
    path = tmp_path / extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "cat/0.png").read_bytes())
    classes, sizes, text = read(tmp_path, caplog)
    assert (classes, sizes) == (("cat", "dog"), {"train": 3})
    assert "left out" not in text


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "val"), ("train", "validation")),
        (("train", "valid", "test"), ("train", "validation", "test")),
        (("train", "validation"), ("train", "validation")),
        (("Train", "Test"), ("train", "test")),
        (("TRAIN", "VAL", "TEST"), ("train", "validation", "test")),
        (("training", "validation", "testing"), ("train", "validation", "test")),
        (("Training", "Valid"), ("train", "validation")),
        (("train", "test"), ("train", "test")),
        (("train",), ("train",)),
        (("train", "Val", "extra"), ("train", "validation")),
    ],
)
def test_folders_of_splits_in_any_spelling(tmp_path, folders, expected, caplog):
    for folder in folders:
        paint(tmp_path / folder, *TWO)
    classes, sizes, text = read(tmp_path, caplog)
    assert classes == ("cat", "dog")
    assert sizes == dict.fromkeys(expected, 3)
    assert ("left out, beside the folders of splits" in text) == ("extra" in folders)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "valid/cat/0.png"),
         r"two folders for the split 'validation', val and valid"),
        (("train/cat/0.png", "train/dog/0.png", "Train/cat/0.png"), r"two folders for"),
        (("train/0.png", "test/0.png"), r"no class folders in train: .* data\.labels_file"),
        (("val/cat/0.png", "test/cat/0.png"), r"splits \(test, val\) but no folder train"),
        (("train/cat/0.png", "val/cat/0.png"), r"images of 1 classes"),
        (("0.png", "1.png"), r"images of 0 classes.*in no folder of a class: .*0\.png"),
        (("cat/0.png", "cat/1.png"), r"images of 1 classes, where two are needed"),
        (("cat/0.png", "dog/0.heic"), r"images of 1 classes.*left out for their extension: \.heic"),
        (("cat/0.png", ".dog/0.png"), r"images of 1 classes"),
        ((), r"images of 0 classes"),
    ],
)  # fmt: skip
def test_what_are_no_classes_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as caught:
        read(paint(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_class_may_be_called_like_a_split(tmp_path):
    paint(tmp_path, "train/0.png", "bus/0.png", "car/0.png")
    assert read(tmp_path)[0] == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("empty/", r"no images, so no class, in: .*empty"),
        ("deep/er/", r"no images, so no class, in: .*deep"),
        ("cat/notes.txt", r"left out for their extension: \.txt \(1\)"),
        ("dog/x.HEIC", r"left out for their extension: \.heic \(1\)"),
        ("dog/README", r"left out for their extension: no extension \(1\)"),
        ("dog/x.webm", r"\.webm \(1\)"),
        ("loose.png", r"in no folder of a class: .*loose\.png"),
        ("cat/link.png -> cat/0.png", r"symbolic links followed: .*link\.png"),
        ("bird -> cat", r"symbolic links followed: .*bird"),
        ("cat/more -> dog", r"symbolic links not followed: .*more"),
        ("cat/gone.png -> nowhere", r"symbolic links not followed: .*gone\.png"),
        ("cat/round -> cat", r"symbolic links not followed: .*round"),
    ],
)
def test_the_summary_names_what_is_unusual(tmp_path, extra, message, caplog):
    paint(tmp_path, *TWO)
    name, _, target = extra.partition(" -> ")
    path = tmp_path / name
    if target:
        path.symlink_to(tmp_path / target)
    elif name.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.write_bytes((tmp_path / "cat/0.png").read_bytes())
    classes, sizes, text = read(tmp_path, caplog)
    assert re.search(message, text)
    assert classes == (("bird", "cat", "dog") if name == "bird" else ("cat", "dog"))
    assert sizes["train"] == {"bird": 5, "cat/link.png": 4}.get(name, 3)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "PNG", "jpeg", "Jfif"])
def test_other_spellings_of_extensions_are_images(tmp_path, suffix):
    paint(tmp_path, *TWO, f"dog/1.{suffix}")
    assert read(tmp_path)[1] == {"train": 4}


def test_counts_are_said_once(tmp_path, caplog):
    paint(tmp_path, *TWO)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read(tmp_path)
            ImageFolder(str(tmp_path), test_fraction=0.0, validation_fraction=0.0).reader()
    assert caplog.text.count("train 3 images (cat 2, dog 1)") == 1


def test_an_animation_is_named(tmp_path, caplog):
    paint(tmp_path, *TWO)
    frames = [Image.fromarray(np.full((4, 4), shade, np.uint8)) for shade in (0, 100)]
    frames[0].save(tmp_path / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    assert "the first is read: " + str(tmp_path / "cat" / "x.gif") in read(tmp_path, caplog)[2]


def test_floats_end_the_run_and_are_not_skipped(tmp_path):
    paint(tmp_path, *TWO)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "cat" / "x.tif")
    with pytest.raises(UserError, match=r"cat/x\.tif has pixels of floats"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\ncat/0.png,a\ncat/0.png,b\n", r"row 2 names cat/0\.png again, after row 1"),
        ("file,label\ncat/0.png,a\ncat/0.png,a\n", r"row 2 names cat/0\.png again"),
        ("file,label\ncat/0,a\n", r"row 1 names cat/0, not in .*with their extension"),
        ("file,label\ncat\\0.png,a\n", r"row 1 names cat\\0\.png, not in"),
        ("file,label\ncat/0.png,\n", r"row 1 has no label \(cat/0\.png\)"),
        ("file,label\ncat/0.png,  \n", r"row 1 has no label"),
        ("file,label\ncat/0.png,a\n", r"images of 1 classes"),
        ("file,label,label\ncat/0.png,a,b\n", r"several columns 'label'"),
        ("file,label\ncat/0.png\n", r"line 2: 1 fields"),
        ("file,label,p\ncat/0.png,a,\n", r"row 1 has no p \(cat/0\.png\)"),
    ],
)
def test_a_file_of_labels_is_checked(tmp_path, table, message):
    paint(tmp_path, *TWO)
    (tmp_path / "labels.csv").write_text(table)
    group = "p" if ",p\n" in table else None
    with pytest.raises(UserError, match=message):
        read(tmp_path, labels_file=str(tmp_path / "labels.csv"), group=group)


def test_groups_and_classes_are_held_out_as_wanted(tmp_path):
    files = [f"{'ab'[i % 2]}/{i}.png" for i in range(40)]
    paint(tmp_path, *files)
    labels = [int(s["label"]) for s in map(ImageFolder(str(tmp_path)).splits()["test"].__getitem__,
                                           range(8))]  # fmt: skip
    assert sorted(labels) == [0] * 4 + [1] * 4
    rows = "".join(f"{name},{name[0]},{i // 5}\n" for i, name in enumerate(files))
    (tmp_path / "labels.csv").write_text("file,label,patient\n" + rows)
    labels_file = str(tmp_path / "labels.csv")
    splits = ImageFolder(str(tmp_path), labels_file=labels_file, group="patient").splits()
    groups = [{i // 5 for i in root_indices(source)} for source in splits.values()]
    assert sum(map(len, groups)) == 8
    with pytest.raises(UserError, match=r"data\.group is a column of data\.labels_file"):
        ImageFolder(str(tmp_path), group="patient")


@pytest.mark.parametrize("same", [True, False])
def test_what_reading_a_file_needs_is_kept_without_the_folder(tmp_path, same):
    root = paint(tmp_path / "pets", *TWO, "dog/1.png")
    if not same:
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "cat" / "9.png")
    data = ImageFolder(str(root), test_fraction=0.0, validation_fraction=0.0)
    known = data.with_fitted(json.loads(json.dumps(data.fit())))
    Image.fromarray(np.full((8, 8, 4), 100, np.uint8)).save(tmp_path / "new.png")
    expected = data.reader()(tmp_path / "new.png")["image"]
    assert expected.shape == ((1, 4, 4, 3) if same else (1, 8, 8, 3))
    shutil.rmtree(root)
    np.testing.assert_array_equal(known.reader()(tmp_path / "new.png")["image"], expected)
    assert known.output_names() == ("cat", "dog")
    paint(root, *TWO, "emu/0.png", "bat/0.png")
    with pytest.raises(UserError, match=r"holds the class 'bat', which the run was not trained on"):
        known.load()
    shutil.rmtree(root)
    paint(root, "dog/0.png", "emu/0.png")
    (root / "emu").rename(root / "cat")
    assert [int(known.load()["train"][i]["label"]) for i in range(2)] == [0, 1]
