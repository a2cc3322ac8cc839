"""Boxes and masks that are predicted from files, in the files' own pixels."""

import json
from dataclasses import dataclass

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

import jdl
from jdl.data import Arrays, Pad, Resize, Scale
from jdl.data.annotations import read_coco
from jdl.errors import UserError
from jdl.inference.outputs import PictureOutputs
from jdl.inference.predict import predict_files
from jdl.media import overlay
from jdl.metrics import Mean
from jdl.tasks import Classification, Detection, Segmentation, Task

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 16, 16, 3), np.uint8)
BOXES = np.tile(np.array([[2.0, 3.0, 9.0, 12.0]], np.float32), (8, 1, 1))
ARRAYS = {
    "image": IMAGES,
    "boxes": BOXES,
    "labels": np.zeros((8, 1), np.int32),
    "segmentation_mask": IMAGES[..., 0].astype(np.int32) % 3,
    "label": np.arange(8) % 2,
}


class Pixels(nn.Module):
    """One 1x1 convolution, of every `stride` pixels."""

    features: int = 6
    stride: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.features, (1, 1), self.stride)(x)


def train(task, model, transforms=()):
    transforms = transforms or (Resize(height=16, width=16),)
    data = Arrays(
        {"train": ARRAYS},
        transforms=(*transforms, Pad(2)),
        device_transforms=(Scale(),),
        class_names=("a", "b"),
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    experiment = jdl.Experiment(model=model, task=task, data=data, steps=1, batch_size=4, hooks=())
    return jdl.train(experiment)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "one.png", tmp_path / "other.png"]
    for path, size in zip(paths, ((32, 48), (20, 16)), strict=True):
        pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def predict(run, files, **options):
    read = run.experiment.data.reader()
    writer = PictureOutputs(run, read, *(options.get(k) for k in ("coco", "masks", "draw")))
    lines = list(predict_files(run, read, files, fail, writer))
    writer.close()
    return lines


def fail(error):
    raise error


def test_boxes_are_read_back_in_the_pixels_of_the_files(files, tmp_path):
    run = train(Detection(num_classes=2, min_score=0.05, coco=()), Pixels())
    lines = predict(run, files, coco=tmp_path / "out" / "boxes.json", draw=tmp_path / "drawn")
    found = read_coco(tmp_path / "out" / "boxes.json", tmp_path, list, ("a", "b"))[0]
    scores = json.loads((tmp_path / "out" / "boxes.json").read_text())["annotations"]
    assert len(scores) == sum(len(each.boxes) for each in found) > 0
    assert all(item["score"] >= 0.05 for item in scores)
    for line, each, file in zip(lines, found, files, strict=True):
        picture = np.asarray(Image.open(file))
        height, width = picture.shape[:2]
        scale = np.array([width, height, width, height]) / 16
        all_boxes = np.array([item["box"] for item in line["prediction"]])
        wanted = all_boxes[(all_boxes[:, 2:] > all_boxes[:, :2]).all(1)] * scale
        np.testing.assert_allclose(each.boxes, wanted, atol=0.02 * scale.max())
        drawn = np.asarray(Image.open(next((tmp_path / "drawn").glob(f"*-{file.stem}.png"))))
        names = run.experiment.data.output_names()
        labels = [np.array(each.labels)]
        same = overlay(picture[None], boxes=[np.array(each.boxes)], labels=labels, names=names)
        assert (drawn == same[0]).mean() > 0.99


def test_masks_have_the_size_of_the_files_and_the_classes_as_indices(files, tmp_path):
    run = train(Segmentation(), Pixels(3, 1))
    predict(run, files, masks=tmp_path / "masks", draw=tmp_path / "drawn")
    for index, file in enumerate(files):
        picture = Image.open(file)
        small = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR))
        classes = run.predict(small[None])[0].argmax(-1).astype(np.uint8)
        wanted = Image.fromarray(classes).resize(picture.size, Image.Resampling.NEAREST)
        name = f"{index:05d}-{file.stem}.png"
        mask = Image.open(tmp_path / "masks" / name)
        assert mask.mode == "P"
        np.testing.assert_array_equal(mask, wanted)
        drawn = overlay(np.asarray(picture)[None], np.asarray(mask)[None])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "drawn" / name)), drawn[0])
    assert run.sample(3, split="train").pixels.shape == (3, 16, 16, 3)


@dataclass(frozen=True, kw_only=True)
class Restoring(Task):
    """Squared error of images that are made of images."""

    targets: str = "image"

    def loss_and_metrics(self, outputs, batch):
        errors = ((outputs - batch["image"]) ** 2).mean((1, 2, 3))
        return {"loss": Mean.of(errors, batch["mask"])}


@pytest.mark.parametrize("any_size", [False, True])
def test_predicted_images_are_written_of_any_size_if_the_model_takes_them(
    any_size, files, tmp_path
):
    run = train(Restoring(any_size=any_size), Pixels(3, 1))
    predict(run, files, draw=tmp_path / "drawn")
    for index, file in enumerate(files):
        picture = Image.open(file)
        if not any_size:
            picture = picture.resize((16, 16), Image.Resampling.BILINEAR)
        x = np.asarray(picture)[None]
        found = np.asarray(Pixels(3, 1).apply({"params": run.params}, np.float32(x) / 255))
        drawn = np.asarray(Image.open(tmp_path / "drawn" / f"{index:05d}-{file.stem}.png"))
        np.testing.assert_allclose(drawn, found[0].clip(0, 1) * 255, atol=0.51)
    if any_size:
        assert run.predict(np.zeros((3, 8, 24, 3), np.uint8)).shape == (3, 8, 24, 3)
        with pytest.raises(UserError, match=r"'image' has shape \(8, 24, 1\), where the run"):
            run.predict(np.zeros((3, 8, 24, 1), np.uint8))


def test_masks_of_any_size_are_those_of_the_whole_picture(files, tmp_path):
    run = train(Segmentation(any_size=True), Pixels(3, 1))
    predict(run, files[:1], masks=tmp_path / "masks")
    mask = np.asarray(Image.open(tmp_path / "masks" / "00000-one.png"))
    wanted = run.predict(np.asarray(Image.open(files[0]))[None])[0].argmax(-1)
    np.testing.assert_array_equal(mask, wanted)


def cropped(example):
    names = [name for name in ("image", "segmentation_mask") if name in example]
    return {**example, **{name: example[name][:16, :16] for name in names}}


def test_what_would_lie_elsewhere_is_refused(files, tmp_path):
    run = train(Segmentation(), Pixels(3, 1), transforms=(Resize(height=20, width=20), cropped))
    with pytest.raises(UserError, match=r"do more than resize a picture of 48x32"):
        predict(run, files[:1], masks=tmp_path / "masks")
    assert not (tmp_path / "masks").exists()
    with pytest.raises(UserError, match="--coco needs a run of the task Detection, not of Segm"):
        predict(run, files, coco=tmp_path / "boxes.json")
    classifier = train(Classification(), Flat())
    with pytest.raises(UserError, match="--draw needs a run of the task Detection or Segmentation"):
        predict(classifier, files, draw=tmp_path / "drawn")


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1))
