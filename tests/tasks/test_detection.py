"""Detection against pycocotools, a plain NumPy heat map, and by learning squares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import jdl
from jdl.data import Arrays, Mosaic, RandomAffine, RandomFlip, Scale
from jdl.errors import UserError
from jdl.metrics.coco import average_precision
from jdl.models import UNet
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.report import dense
from jdl.report.page import Folder
from jdl.step import Program
from jdl.tasks import (
    MIRROR_AND_FLIP,
    MIRROR_AND_SHIFT,
    Detection,
    Segmentation,
    sliding_windows,
)
from jdl.tasks.detection import focal_loss, heat_map, suppress

SIZE, ROWS = 16, 8
TASK = Detection(num_classes=2)


@functools.cache
def squares(count=ROWS, seed=0):
    """Images with a bright square of class 0 or a dark one of class 1, and their masks."""
    rng = np.random.default_rng(seed)
    image = np.full((count, SIZE, SIZE, 1), 120, np.uint8)
    mask = np.zeros((count, SIZE, SIZE), np.int32)
    boxes, labels = np.zeros((count, 3, 4), np.float32), np.zeros((count, 3), np.int32)
    for i in range(count):
        (y, x), side = rng.integers(0, 9, 2), rng.integers(4, 8)
        labels[i, 0] = rng.integers(2)
        boxes[i, 0] = x, y, x + side, y + side
        image[i, y : y + side, x : x + side] = 240 - 230 * labels[i, 0]
        mask[i, y : y + side, x : x + side] = labels[i, 0] + 1
    kept = np.tile([True, False, False], (count, 1))
    kept[:2] = False  # two images without objects
    return {
        "image": image,
        "boxes": boxes,
        "labels": labels,
        "boxes_mask": kept,
        "segmentation_mask": mask,
    }


def batch(rows=ROWS, **changes):
    whole = {**squares(), "mask": np.arange(ROWS) < rows, **changes}
    return {name: jnp.asarray(array) for name, array in whole.items()}


def outputs(seed=0, features=6):
    return jax.random.normal(jax.random.key(seed), (ROWS, 8, 8, features))


def test_a_heat_map_equals_one_made_by_loops():
    place = jnp.array([[[2.0, 1.0], [5.0, 6.0], [5.0, 5.0]]])
    side = jnp.array([[[4.0, 2.0], [6.0, 6.0], [1.0, 1.0]]])
    labels, kept = jnp.array([[0, 1, 1]]), jnp.array([[True, True, False]])
    found = np.asarray(heat_map(place, side, labels, kept, (1, 8, 9, 2)))
    expected = np.zeros((1, 8, 9, 2))
    for n in range(2):
        for y in range(8):
            for x in range(9):
                (cx, cy), (sx, sy) = place[0, n], (0.54 * side[0, n] + 1) / 6
                value = np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2) / 2)
                expected[0, y, x, labels[0, n]] = max(expected[0, y, x, labels[0, n]], value)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 1, 2, 0] == found[0, 6, 5, 1] == 1


def test_the_focal_loss_equals_its_formula():
    logits, target = jnp.array([2.0, -1.0, 0.5]), jnp.array([1.0, 0.6, 0.0])
    p = 1 / (1 + np.exp(-logits))
    expected = [-((1 - p[0]) ** 2) * np.log(p[0]), *(
        -((1 - target[i]) ** 4) * p[i] ** 2 * np.log(1 - p[i]) for i in (1, 2)
    )]  # fmt: skip
    np.testing.assert_allclose(focal_loss(logits, target), expected, rtol=1e-5)


def perfect():
    """Outputs whose predictions are the true boxes."""
    known, found = squares(), np.full((ROWS, 8, 8, 6), -20.0, np.float32)
    for i in range(2, ROWS):
        cells = known["boxes"][i, 0] / 2
        center, side = (cells[:2] + cells[2:]) / 2, cells[2:] - cells[:2]
        x, y = np.floor(center).astype(int)
        found[i, y, x, known["labels"][i, 0]] = 20
        found[i, y, x, 2:] = *(center - [x, y]), *np.log(side)
    return jnp.asarray(found)


def test_predictions_invert_the_targets():
    prediction = jax.tree.map(np.asarray, TASK.to_prediction(perfect(), batch()))
    assert prediction["boxes"].shape == (ROWS, 100, 4)
    np.testing.assert_allclose(prediction["boxes"][2:, 0], squares()["boxes"][2:, 0], atol=1e-4)
    np.testing.assert_array_equal(prediction["labels"][2:, 0], squares()["labels"][2:, 0])
    assert (prediction["scores"][2:, 0] > 0.99).all()
    assert prediction["scores"][:, 1:].max() < 1e-3
    metrics = TASK.compute_metrics(prediction, squares(), Arrays({"train": squares()}))
    numbers = {k: v for k, v in metrics.metrics.items() if k.startswith("map")}
    assert numbers == dict.fromkeys(("map", "map_50", "map_75", "map_small"), 1.0)
    assert metrics.metrics["ap"].tolist() == metrics.metrics["ap_50"].tolist() == [1.0, 1.0]
    assert metrics.lines[0] == "[]"
    assert metrics.lines[2].startswith('[{"class": ')
    losses = TASK.loss_and_metrics(perfect(), batch())
    assert float(losses["l1"].compute()) < 1e-5
    assert float(losses["loss"].count) == ROWS  # one box in six images, and two images without


def test_average_precision_counts_as_coco_does():
    """Of two boxes one is found, after a detection of nothing: precision 1/2 up to recall 1/2."""
    boxes = np.float32([[[0, 0, 10, 10], [20, 20, 30, 30]]])
    prediction = {
        "boxes": np.float32([[[40, 40, 50, 50], [0, 0, 10, 10]]]),
        "scores": np.float32([[0.9, 0.8]]),
        "labels": np.zeros((1, 2), int),
    }
    labels, mask = np.zeros((1, 2), int), np.ones((1, 2), bool)

    def score(prediction, mask, crowd):
        return average_precision(prediction, boxes, labels, mask, crowd, 2).metrics()

    found = score(prediction, mask, ~mask)
    assert found["map_50"] == pytest.approx(0.5 * 51 / 101)
    crowd = np.array([[False, True]])  # the box that is missed does not count
    found = score(prediction, mask, crowd)
    assert found["map"] == pytest.approx(0.5)
    np.testing.assert_equal(found["ap_50"], [found["map_50"], np.nan])
    assert score(prediction, ~mask, ~mask) == {}
    nothing = {**prediction, "scores": np.zeros((1, 2))}
    assert score(nothing, mask, ~mask)["map"] == 0


def crowded(rng, images=12, true=6, found=15):
    """True boxes and noisy detections of them; some images have neither."""

    def boxes(count):
        corner = rng.uniform(0, 200, (images, count, 2))
        side = np.exp(rng.uniform(np.log(8), np.log(200), (images, count, 2)))
        return np.concatenate([corner, corner + side], -1)

    truth = {"boxes": boxes(true), "labels": rng.integers(0, 3, (images, true))}
    truth["boxes_mask"] = np.arange(true) < rng.integers(0, true + 1, (images, 1))
    truth["boxes_mask"][:3] = False
    near = np.concatenate([truth["boxes"], boxes(found - true)], 1)
    guess = np.where(np.arange(found) < true, np.pad(truth["labels"], ((0, 0), (0, 9))), 0)
    scores = rng.uniform(0.01, 1, (images, found)) * (np.arange(images) > 1)[:, None]
    near = near + rng.normal(0, 3, near.shape)
    return truth, {"boxes": near, "scores": scores, "labels": guess}


@pytest.mark.parametrize("limit", [4, 15, 100, 120])
def test_average_precision_equals_pycocotools_own_summary(limit):
    """Of any number of detections, with empty images, and by class and size."""
    truth, prediction = crowded(np.random.default_rng(1), found=15)
    order = np.argsort(-prediction["scores"], 1)[:, :limit]
    prediction = {
        k: np.take_along_axis(v, order[..., None] if v.ndim == 3 else order, 1)
        for k, v in prediction.items()
    }
    if limit > 15:  # as a detector of more than 15 cells gives it
        widths = ((0, 0), (0, limit - 15))
        prediction = {k: np.pad(v, (*widths, (0, 0))[: v.ndim]) for k, v in prediction.items()}
    mask = truth["boxes_mask"]
    found = average_precision(
        prediction, truth["boxes"], truth["labels"], mask, np.zeros_like(mask), 3
    ).metrics()
    images = [{"id": i} for i in range(len(mask))]
    categories = [{"id": label} for label in range(3)]

    def annotation(number, image, box, label):
        (x0, y0, x1, y1), label = box.tolist(), int(label)
        sides = [x0, y0, x1 - x0, y1 - y0]
        return {"id": number, "image_id": image, "category_id": label, "bbox": sides,
                "area": sides[2] * sides[3], "iscrowd": 0}  # fmt: skip

    true = [
        annotation(n + 1, i, truth["boxes"][i, j], truth["labels"][i, j])
        for n, (i, j) in enumerate(np.argwhere(mask).tolist())
    ]
    given = [
        {**annotation(0, i, prediction["boxes"][i, j], prediction["labels"][i, j]),
         "score": prediction["scores"][i, j]}
        for i, j in np.argwhere(prediction["scores"] > 0).tolist()
    ]  # fmt: skip
    whole = COCO()
    whole.dataset = {"info": {}, "images": images, "categories": categories, "annotations": true}
    whole.createIndex()
    for label in (None, 0, 1, 2):
        scores = COCOeval(whole, whole.loadRes(given), "bbox")
        scores.params.catIds = [0, 1, 2] if label is None else [label]
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
        expected = scores.stats[:6]
        if label is None:
            names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
            np.testing.assert_allclose([found[name] for name in names], expected)
        else:
            np.testing.assert_allclose([found["ap"][label], found["ap_50"][label]], expected[:2])
    if limit == 15:  # a class of which there is nothing
        four = average_precision(
            prediction, truth["boxes"], truth["labels"], mask, np.zeros_like(mask), 4
        ).metrics()
        np.testing.assert_equal(four["ap"], [*found["ap"], np.nan])
        assert four["map"] == pytest.approx(found["map"])


def test_suppression_keeps_the_most_probable_of_those_that_overlap():
    boxes = jnp.float32([[[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [0, 0, 10, 10]]])
    scores, labels = jnp.float32([[0.9, 0.8, 0.7, 0.6]]), jnp.array([[0, 0, 0, 1]])
    # Neighbors overlap by 9/11, the first and third by 8/12.
    for limit, kept in ((0.6, [0.9, 0, 0, 0.6]), (0.7, [0.9, 0, 0.7, 0.6]), (0.9, scores[0])):
        np.testing.assert_allclose(suppress(boxes, scores, labels, limit)[0], kept)
    first = dataclasses.replace(TASK, nms_iou=0.02).to_prediction(outputs(), batch())
    every = TASK.to_prediction(outputs(), batch())
    assert 0 < (first["scores"] > 0).sum() < (every["scores"] > 0).sum()
    np.testing.assert_array_equal(first["boxes"], every["boxes"])


def test_mirrored_and_flipped_views_find_the_same_objects():
    """A network that answers a mirrored image with mirrored objects loses nothing by the mean."""
    whole = perfect()
    x, y = TASK.num_classes, TASK.num_classes + 1
    turned = []
    for view in MIRROR_AND_FLIP:
        own = view.undo(whole)
        own = own.at[..., x].set(1 - own[..., x]) if view.mirror else own
        turned.append(own.at[..., y].set(1 - own[..., y]) if view.flip else own)
    task = dataclasses.replace(TASK, views=MIRROR_AND_FLIP)
    mean = task.average_views(jnp.stack(turned), batch())
    np.testing.assert_allclose(mean, whole, atol=1e-5)
    # By the boxes: those of a mirrored image are found where the mirror puts them.
    prediction = TASK.to_prediction(turned[1], batch())
    known = squares()["boxes"][2:, 0]
    mirrored = np.stack([SIZE - known[:, 2], known[:, 1], SIZE - known[:, 0], known[:, 3]], 1)
    np.testing.assert_allclose(prediction["boxes"][2:, 0], mirrored, atol=1e-4)


def learner(arrays, task=TASK, batch_size=4, features=6, **changes):
    data = Arrays(
        {"train": arrays, "test": arrays}, device_transforms=(Scale(),), validation_fraction=0.0
    )
    return jdl.Experiment(
        UNet((8,), features, stride=2), task=task, data=data, optimizer=SGD(0.1), hooks=(), steps=1,
        strategy=Single(), batch_size=batch_size, **changes,
    )  # fmt: skip


def test_average_precision_is_equal_in_any_batch_size(tmp_path):
    run = jdl.train(learner(squares()), tmp_path / "run")
    found = run.evaluate("test")
    assert 0 <= found["map"] <= 1
    assert found["ap"].shape == (2,)
    scores, curves = dense.sections(run, Folder(tmp_path))
    for part in ("Scores by class", "AP at IoU 0.5", f"{found['ap'][0]:.4f}"):
        assert part in scores
    assert "Precision-recall curves" in curves
    assert (tmp_path / "precision_recall.png").is_file()
    state = run.gather_state()
    for size in (3, 8):
        other = jdl.train(learner(squares(), batch_size=size), tmp_path / str(size))
        np.testing.assert_equal(
            {k: v for k, v in other.evaluate("test", state).items() if k[0] in "ma"},
            {k: v for k, v in found.items() if k[0] in "ma"},
        )


def test_images_without_objects_and_a_single_class(tmp_path, caplog):
    empty = {**squares(), "boxes_mask": np.zeros((ROWS, 3), bool)}
    with pytest.raises(UserError, match="split 'train' has no object in any image"):
        jdl.train(learner(empty))
    one = {**squares(), "labels": np.zeros((ROWS, 3), np.int32)}
    run = jdl.train(learner(one, Detection(num_classes=1), features=5), tmp_path)
    assert run.evaluate("test")["ap"].shape == (1,)
    data = Arrays({"train": one, "test": empty})
    prediction = jax.tree.map(np.asarray, TASK.to_prediction(outputs(), batch()))
    assert TASK.compute_metrics(prediction, empty, data).metrics == {}
    assert "no object in any image of the split" in caplog.text


def test_padding_and_crowds_do_not_count():
    found, dirty = outputs(), batch(5)
    noise = np.random.default_rng(1)
    other = jnp.asarray(noise.uniform(0, 9, (ROWS, 3, 4)), jnp.float32)
    dirty["boxes"] = jnp.where(dirty["boxes_mask"][..., None], dirty["boxes"], other)
    one, other = (TASK.loss_and_metrics(found, each) for each in (batch(5), dirty))
    last = TASK.loss_and_metrics(found.at[5:].set(jnp.nan), dirty)
    for name in ("loss", "focal", "l1"):
        assert float(one[name].total) == float(other[name].total) == float(last[name].total)
        assert float(one[name].count) == 5
    crowd = batch(is_crowd=squares()["boxes_mask"])
    without = batch(boxes_mask=np.zeros((ROWS, 3), bool))
    clean = outputs()
    assert float(TASK.loss_and_metrics(clean, crowd)["loss"].total) == float(
        TASK.loss_and_metrics(clean, without)["loss"].total
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [9, 1, 5, 5]}, "box 0 at row 2 is inverted"),
        ({"boxes": [5, 1, 5, 5]}, "box 0 at row 2 is empty"),
        ({"boxes": [20, 1, 25, 5]}, "box 0 at row 2 is outside of the image of 16x16 pixels"),
        ({"labels": 2}, r"label 2 of box 0 at row 2 is outside 0\.\.1 \(task.num_classes is 2\)"),
    ],
)
def test_bad_boxes_in_arrays_are_refused(changes, message):
    known = {name: array.copy() for name, array in squares().items()}
    for name, value in changes.items():
        known[name][2, 0] = value
    with pytest.raises(UserError, match=f"split 'train': .*{message}"):
        TASK.validate_batch(known, None, "split 'train'")


def test_what_does_not_fit_detection_is_refused():
    with pytest.raises(UserError, match=r"has no array 'boxes_mask'.*add Pad"):
        TASK.validate_batch({k: v for k, v in squares().items() if k != "boxes_mask"}, None, "x")
    with pytest.raises(UserError, match=r"needs \(batch, height, width, 6\)"):
        TASK.loss_and_metrics(outputs(features=7), batch())
    with pytest.raises(UserError, match="num_classes"):
        Detection(num_classes=0)
    with pytest.raises(UserError, match="averages mirrored and flipped views"):
        Detection(num_classes=1, views=MIRROR_AND_SHIFT)
    with pytest.raises(UserError, match="detection sees whole images"):
        Detection(num_classes=1, views=sliding_windows((16, 16), (8, 8)))
    with pytest.raises(UserError, match="nms_iou is an overlap"):
        Detection(num_classes=1, nms_iou=0.0)


MOVES = (
    Mosaic(),
    RandomAffine(rotation_range=20, zoom_range=0.2, fill_mode="constant", mask_cval=255),
    RandomFlip(mode="horizontal_and_vertical"),
    Scale(),
)
PROGRAMS = {
    "detection": Program(UNet((8,), 6, stride=2), TASK, SGD(0.01).build(9), MOVES),
    "segmentation": Program(
        UNet((8,), 3, stride=2), Segmentation(ignored_class=255), SGD(0.1).build(9), MOVES
    ),
}
STRATEGIES = {
    "data": DataParallel(2),
    "fsdp": FullySharded(2, min_elements=1),
    "pmap": Pmap(2),
    "accumulation": Single(),
}


def losses(strategy, program):
    example = {**squares(), "mask": np.ones(ROWS, bool)}
    steps, found = strategy.compile(program, {}, example), []
    state = steps.init(jax.random.key(0))
    for seed in range(2):
        one = {**squares(ROWS, seed), "mask": np.arange(ROWS) < 7}
        state, packed = steps.update(state, steps.put(one))
        (metrics,) = packed.unpack()
        found.append(float(metrics["loss"].compute()))
    return found, jax.tree.map(np.asarray, steps.gather(state).params)


@functools.cache
def expected(name):
    return losses(Single(), PROGRAMS[name])


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("detection", each) for each in STRATEGIES),
        *(pytest.param("segmentation", each, marks=pytest.mark.slow) for each in STRATEGIES),
    ],
)
def test_losses_are_equal_under_every_strategy(name, strategy):
    program = PROGRAMS[name]
    if strategy == "accumulation":
        program = dataclasses.replace(program, num_microbatches=2)
    found, params = losses(STRATEGIES[strategy], program)
    known, last = expected(name)
    np.testing.assert_allclose(found, known, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, last)
