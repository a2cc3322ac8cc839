"""Annotations are written and read back equal; errors name file and place."""

import json

import numpy as np
import pytest
from PIL import Image

from jdl.data import ImageBoxes, ImageMasks, Pad
from jdl.data.annotations import (
    Objects,
    read_coco,
    read_voc,
    read_yolo,
    write_coco,
    write_voc,
    write_yolo,
)
from jdl.data.images import encode_mask, palette
from jdl.data.pipeline import open_pipeline
from jdl.errors import UserError

CLASSES = ("cat", "dog", "eel")
RNG = np.random.default_rng(0)


def raising(sentence):
    raise UserError(sentence)


def picture(path, height, width, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(RNG.integers(0, 255, shape, np.uint8)).save(path)


@pytest.fixture
def scenes(tmp_path):
    """A folder of images, and random objects in them."""
    items = []
    for i, (height, width) in enumerate([(30, 41), (25, 17), (9, 64)]):
        file = f"{'sub/' if i == 1 else ''}{i}.png"
        picture(tmp_path / "images" / file, height, width)
        low = RNG.uniform(0, 0.5, (4 * i, 2)) * [width, height]
        boxes = np.concatenate([low, low + RNG.uniform(0.1, 0.5, low.shape) * [width, height]], 1)
        labels = RNG.integers(0, 3, 4 * i)
        items.append(
            Objects(
                file, height, width, tuple(map(tuple, np.round(boxes, 4).tolist())),
                tuple(labels.tolist()), (False,) * (4 * i),
            )
        )  # fmt: skip
    return tmp_path / "images", sorted(items)


FORMATS = {
    "coco": (read_coco, write_coco),
    "voc": (read_voc, write_voc),
    "yolo": (read_yolo, write_yolo),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_annotations_are_written_and_read_back_equal(scenes, tmp_path, kind):
    images, items = scenes
    read, write = FORMATS[kind]
    place = tmp_path / ("a.json" if kind == "coco" else "labels")
    if kind != "coco":
        place.mkdir()
    if kind != "yolo":  # which holds no crowds
        items[2] = items[2]._replace(is_crowd=(True, *items[2].is_crowd[1:]))
    write(place, items, CLASSES)
    found, classes = read(place, images, raising, CLASSES if kind == "voc" else ())
    assert (sorted(found), classes) == (items, CLASSES)
    again = tmp_path / "again"
    if kind != "coco":
        again.mkdir()
    write(again, found, classes)
    assert read(again, images, raising, classes)[0] == found


def test_a_class_by_any_format_reaches_a_batch(scenes, tmp_path):
    images, items = scenes
    (tmp_path / "labels").mkdir()
    write_yolo(tmp_path / "labels", items, CLASSES)
    data = ImageBoxes(
        str(images),
        str(tmp_path / "labels"),
        transforms=(Pad(8),),
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    assert data.output_names() == CLASSES
    assert data.fit()["classes"] == list(CLASSES)
    source = data.splits()["train"]
    example = source[1]
    each = next(item for item in items if item.file == example["file"])
    np.testing.assert_allclose(example["boxes"], each.boxes, atol=1e-4)
    assert "is_crowd" not in example
    with pytest.raises(UserError, match="bring all to one shape"):
        open_pipeline(data, source, "train")


def test_crowds_are_kept_and_padded(scenes, tmp_path):
    images, items = scenes
    items[1] = items[1]._replace(is_crowd=(True,) * len(items[1].boxes))
    write_coco(tmp_path / "a.json", items, CLASSES)
    data = ImageBoxes(str(images), str(tmp_path / "a.json"))
    padded = Pad(8, names=("boxes", "labels", "is_crowd"))(data.load()["train"][1])
    assert padded["is_crowd"].sum() == len(items[1].boxes)


def test_splits_are_found_by_their_usual_names(scenes, tmp_path):
    _, items = scenes
    for name in ("train", "val"):
        for each in items:
            picture(tmp_path / "by" / name / each.file, each.height, each.width)
        write_coco(tmp_path / f"{name}.json", items[: 3 if name == "train" else 2], CLASSES)
    data = ImageBoxes(str(tmp_path / "by" / "{split}"), str(tmp_path / "{split}.json"))
    assert {name: len(source) for name, source in data.load().items()} == {
        "train": 3,
        "validation": 2,
    }
    with pytest.raises(UserError, match="exist for no split train"):
        ImageBoxes(str(tmp_path / "{split}"), str(tmp_path / "{split}.json")).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [5, 5, -2, 3]}, r"a.json: annotation 1: the box in .* is inverted \(x0=5"),
        ({"bbox": [5, 5, 0, 3]}, "annotation 1: the box in .* is empty"),
        ({"bbox": [500, 5, 9, 3]}, "annotation 1: the box in .* is outside of the image of"),
        ({"bbox": [5, 5, "a", 3]}, "annotation 1 has .* where numbers are needed"),
        ({"bbox": [5, 5, 3]}, "annotation 1 has the box .* where four numbers are needed"),
        ({"bbox": None}, "annotation 1 has None, where numbers are needed"),
        ({"image_id": 99}, "annotation 1 names image_id 99, which is not among the images"),
        ({"category_id": 9}, "annotation 1 has category_id 9, a class None that is not among cat"),
    ],
)
def test_bad_coco_annotations_are_refused_with_their_place(scenes, tmp_path, change, message):
    images, items = scenes
    write_coco(tmp_path / "a.json", items, CLASSES)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][1].update(change)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        ImageBoxes(str(images), str(tmp_path / "a.json")).load()


def test_invalid_boxes_are_left_out_if_that_is_asked_for(scenes, tmp_path, caplog):
    images, items = scenes
    write_coco(tmp_path / "a.json", items, CLASSES)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][1]["bbox"] = [5, 5, 0, 3]
    content["annotations"][2]["bbox"] = [-3, -3, 5, 5]  # over the edge: clipped
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = ImageBoxes(str(images), str(tmp_path / "a.json"), max_invalid=1)
    found = [box for each in data.load()["train"].items for box in each.boxes]
    assert len(found) == sum(len(each.boxes) for each in items) - 1
    assert (0, 0, 2, 2) in found
    assert "left out: " in caplog.text
    assert "is empty" in caplog.text


def test_missing_images_and_other_sizes_are_refused(scenes, tmp_path):
    images, items = scenes
    write_coco(tmp_path / "a.json", items, CLASSES)
    for kind, suffix in (("voc", "xml"), ("yolo", "txt")):
        (tmp_path / kind).mkdir()
        FORMATS[kind][1](tmp_path / kind, items, CLASSES)
        assert list((tmp_path / kind).rglob(f"*.{suffix}"))
    (images / "0.png").unlink()
    for place, message in (
        ("a.json", r"a.json: image \d annotates 0.png, which is not in"),
        ("voc", r"0.xml annotates 0.png, which is not in"),
        ("yolo", r"0.txt annotates an image 0 that is not in"),
    ):
        with pytest.raises(UserError, match=message):
            ImageBoxes(str(images), str(tmp_path / place)).load()
    picture(images / "0.png", 31, 41)
    for place in ("a.json", "voc"):
        with pytest.raises(UserError, match=r"says that 0.png has 41x30 pixels, where it has"):
            ImageBoxes(str(images), str(tmp_path / place)).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", r"2.txt: line 1 is '0 0.5 0.5 0.1', where YOLO has"),
        ("0.5 0.5 0.5 0.1 0.1", "where YOLO has a class from 0"),
        ("7 0.5 0.5 0.1 0.1", "line 1 has class 7, beyond the 3 classes"),
        ("0 0.5 0.5 0.1 x", "where numbers are needed"),
        ("0 1.5 0.5 0.1 0.1", r"line 1: the box in 2.png is outside of the image"),
    ],
)
def test_bad_yolo_lines_are_refused_with_their_place(scenes, tmp_path, line, message):
    images, items = scenes
    (tmp_path / "labels").mkdir()
    write_yolo(tmp_path / "labels", items, CLASSES)
    (tmp_path / "labels" / "2.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        ImageBoxes(str(images), str(tmp_path / "labels")).load()


def test_bad_files_are_refused(scenes, tmp_path):
    images, items = scenes
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"images": []}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text("<annotation>")
    for place, message in (
        ("a.json", "cannot be read as JSON"),
        ("b.json", "has no list 'annotations'"),
        ("empty", "holds no annotations"),
        ("voc", "a.xml is no XML"),
        ("none", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            ImageBoxes(str(images), str(tmp_path / place)).load()
    (tmp_path / "voc" / "a.xml").write_text("<annotation><object/></annotation>")
    with pytest.raises(UserError, match="has no name in <object>"):
        ImageBoxes(str(images), str(tmp_path / "voc")).load()
    crowded = [items[2]._replace(is_crowd=(True, *items[2].is_crowd[1:]))]
    with pytest.raises(UserError, match=r"object 0 of .* is a crowd or difficult"):
        write_yolo(tmp_path, crowded, CLASSES)


@pytest.fixture
def masks(tmp_path):
    """Folders of images and of masks with ids 0 to 2 and 255."""
    ids = RNG.choice([0, 1, 2, 255], (3, 8, 9)).astype(np.int32)
    (tmp_path / "masks").mkdir()
    for i, each in enumerate(ids):
        picture(tmp_path / "images" / f"{i}.jpg", 8, 9)
        encode_mask(tmp_path / "masks" / f"{i}.png", each)
    return tmp_path, ids


def folders(place, **changes):
    changes = {"classes": CLASSES, "ignored_class": 255} | changes
    return ImageMasks(str(place / "images"), str(place / "masks"), **changes)


def test_masks_are_written_and_read_back_equal(masks):
    place, ids = masks
    source = folders(place).load()["train"]
    for i in range(3):
        assert source[i]["image"].shape == (8, 9, 3)
        np.testing.assert_array_equal(source[i]["segmentation_mask"][..., 0], ids[i])
        assert source[i]["segmentation_mask"].dtype == np.uint8
    Image.fromarray(ids[0].astype(np.uint8)).save(place / "masks" / "0.png")  # gray
    np.testing.assert_array_equal(source[0]["segmentation_mask"][..., 0], ids[0])
    colors = palette()
    assert colors[[0, 1, 15]].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128]]  # as in VOC
    with pytest.raises(UserError, match="ids from 0 to 255"):
        encode_mask(place / "x.png", ids + 1)


def test_bad_masks_are_refused_with_file_and_index(masks):
    place, ids = masks
    ids[1, 4, 5] = 9
    encode_mask(place / "masks" / "1.png", ids[1])
    data = folders(place)
    with pytest.raises(
        UserError, match=r"1.png has the id 9 at pixel \(4, 5\), beyond the 3 classes"
    ):
        open_pipeline(data, data.load()["train"], "train")
    encode_mask(place / "masks" / "1.png", ids[1][:5])
    with pytest.raises(UserError, match=r"1.png has 9x5 pixels, where its image .* has 9x8"):
        data.load()
    picture(place / "masks" / "1.png", 8, 9)
    with pytest.raises(UserError, match=r"1.png is an image of mode RGB"):
        data.load()["train"][1]
    (place / "masks" / "1.png").rename(place / "masks" / "7.png")
    with pytest.raises(UserError, match=r"1.jpg has no mask of the same name"):
        data.load()
    picture(place / "images" / "7.jpg", 8, 9)
    (place / "images" / "1.jpg").unlink()
    (place / "images" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"0.png has no image of the same name"):
        data.load()
