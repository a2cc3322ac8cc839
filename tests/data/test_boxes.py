"""Nested features, padding, conversion of boxes, and host transforms that draw at random."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from jdl.data import Arrays, ConvertBoxes, Pad, RandomResizedCrop
from jdl.data.base import Data
from jdl.data.boxes import from_corners, to_corners
from jdl.data.examples import apply_transforms
from jdl.data.pipeline import InMemory, Shard, Streamed, open_pipeline
from jdl.data.sources import flatten
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Listed(Data):
    """Examples that are given."""

    examples: tuple[dict, ...] = ()

    def load(self):
        return {"train": list(self.examples)}

    def full_name(self):
        return "listed"


def scene(*boxes, size=(10, 20)):
    objects = {"bbox": np.float32(boxes).reshape(-1, 4), "label": np.arange(len(boxes))}
    return {"image": np.zeros((*size, 3), np.uint8), "objects": objects, "file": "a.png"}


TFDS_BOXES = ConvertBoxes("rel_yxyx")
WHOLE = [0.0, 0.0, 1.0, 1.0]


def test_nested_features_become_arrays_by_path():
    found = flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [{"f": [1, 2]}, {"f": [3, 4]}], "g": [5]})
    assert found == {"a/b": 1, "a/c/d": 2, "e/f": [[1, 2], [3, 4]], "g": [5]}
    with pytest.raises(UserError, match="item 1 of the list 'e' has g, where item 0 has f"):
        flatten({"e": [{"f": 1}, {"g": 2}]})
    with pytest.raises(UserError, match="two features 'a/b'"):
        flatten({"a": {"b": 1}, "a/b": 2})


def test_nested_features_reach_a_batch_under_their_paths():
    examples = tuple({"x": {"a": np.float64(i), "b": [{"c": i}]}} for i in range(6))
    data = Listed(examples=examples, test_fraction=0.0, validation_fraction=0.0)
    source = data.splits()["train"]
    pipeline = open_pipeline(data, source, "train")
    np.testing.assert_array_equal(pipeline.arrays["x/a"], np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(pipeline.arrays["x/b/c"], np.arange(6)[:, None])
    other = dataclasses.replace(data, examples=(*examples[:-1], {"x": {"a": 9.0, "b": []}}))
    assert data.digest(source) != other.digest(other.splits()["train"])


def test_boxes_of_tfds_are_converted_and_padded():
    data = Listed(transforms=(TFDS_BOXES, Pad(3)))
    found = apply_transforms(data, scene([0.1, 0.2, 0.5, 0.6], WHOLE))
    assert sorted(found) == ["boxes", "boxes_mask", "image", "labels"]
    expected = [[4, 1, 12, 5], [0, 0, 20, 10], [0, 0, 0, 0]]
    np.testing.assert_allclose(found["boxes"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["boxes_mask"], [True, True, False])
    np.testing.assert_array_equal(found["labels"], [0, 1, 0])
    empty = apply_transforms(data, scene())
    assert not empty["boxes_mask"].any()
    image = {"image": np.zeros((10, 20, 3), np.uint8)}  # as in prediction
    assert list(apply_transforms(data, image)) == ["image"]


@pytest.mark.parametrize(
    "kind", ["xyxy", "xywh", "center_xywh", "yxyx", "rel_xyxy", "rel_yxyx", "rel_center_xywh"]
)
def test_every_format_is_written_and_read_back(kind):
    boxes = np.float32([[1, 2, 5, 9], [0, 0, 20, 10]])
    written = from_corners(boxes, kind, 10, 20)
    np.testing.assert_allclose(to_corners(written, kind, 10, 20), boxes, atol=1e-5)


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([0.2, 1.1, 0.5, 1.2], r"box 1 is outside of the image of 20x10 pixels \(x0=22, y0=2"),
        ([0.5, 0.6, 0.1, 0.9], "box 1 is inverted"),
        ([0.5, 0.2, 0.5, 0.6], "box 1 is empty"),
        ([0.5, 0.2, np.nan, 0.6], "box 1 is not finite"),
    ],
)
def test_a_bad_box_is_an_error_with_file_and_index_or_is_dropped(box, what):
    data = Listed(
        examples=(scene(WHOLE), scene(WHOLE, box)),
        transforms=(TFDS_BOXES, Pad(3)),
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    with pytest.raises(UserError, match=rf"^example 1 of split 'train' \(a.png\): {what}"):
        open_pipeline(data, data.splits()["train"], "train")
    dropping = ConvertBoxes("rel_yxyx", invalid="drop")
    found = apply_transforms(Listed(transforms=(dropping, Pad(3))), scene(box, WHOLE))
    np.testing.assert_allclose(found["boxes"][0], [0, 0, 20, 10])
    np.testing.assert_array_equal(found["labels"], [1, 0, 0])


def test_a_box_over_the_edge_is_clipped():
    found = apply_transforms(Listed(transforms=(TFDS_BOXES,)), scene([-0.1, 0.5, 1.2, 1.5]))
    np.testing.assert_allclose(found["boxes"], [[10, 0, 20, 10]])


def test_more_boxes_than_the_pad_are_an_error_and_none_is_lost():
    data = Listed(
        examples=(scene(WHOLE), scene(WHOLE, WHOLE, WHOLE)),
        transforms=(TFDS_BOXES, Pad(2)),
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    with pytest.raises(UserError, match=r"example 1 .*'boxes' has 3 items, more than the 2 of Pad"):
        open_pipeline(data, data.splits()["train"], "train")


def test_pad_leaves_out_masked_items_and_checks_lengths():
    example = {"a": np.arange(3), "b": np.arange(6).reshape(3, 2), "a_mask": [True, False, True]}
    found = Pad(4, names=("a", "b"), value=-1)({**example, "a_mask": np.array(example["a_mask"])})
    np.testing.assert_array_equal(found["a"], [0, 2, -1, -1])
    np.testing.assert_array_equal(found["b"], [[0, 1], [4, 5], [-1, -1], [-1, -1]])
    np.testing.assert_array_equal(found["a_mask"], [True, True, False, False])
    with pytest.raises(UserError, match=r"'b' has shape .* where 'a' has 2 items"):
        Pad(4, names=("a", "b"))({"a": [1, 2], "b": [1]})
    with pytest.raises(UserError, match="Pad finds no array 'b'"):
        Pad(4, names=("a", "b"))({"a": [1, 2]})
    with pytest.raises(UserError, match="size of at least 1"):
        Pad(0)


def test_lists_of_several_lengths_are_an_error_that_names_pad():
    with pytest.raises(UserError, match="'x' is no array"):
        apply_transforms(Listed(), {"x": [[1], [1, 2]]})
    examples = ({"x": [1]}, {"x": [1, 2]})
    with pytest.raises(UserError, match="lists with Pad"):
        open_pipeline(Listed(), list(examples), "train")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Replaces x by a random number in training, and by 0 in evaluation."""

    name: str = "x"

    def random_map(self, example, rng):
        return {**example, self.name: np.float32(rng.uniform())}

    def __call__(self, example):
        return {**example, self.name: np.float32(0)}


def noisy(transforms=(Noise(),), **changes):
    x = np.zeros(10, np.float32)
    splits = {key: {"x": x} for key in ("train", "validation", "test")}
    return Arrays(splits, transforms=transforms, **changes)


def test_random_host_transforms_draw_by_seed_epoch_and_example():
    data = noisy((Noise(), Noise(name="y")), shuffle=False)
    train = open_pipeline(data, data.splits()["train"], "train")
    assert isinstance(train, Streamed)

    def inputs(steps, batch_size, seed=0, shard=None):
        rows = [train.step_input(s, batch_size, seed, shard or Shard()) for s in steps]
        return np.concatenate([np.stack([each["x"], each["y"]], 1) for each in rows])

    whole = inputs(range(2), 10)
    assert len(np.unique(whole)) == 40  # another number for each transform, example and epoch
    np.testing.assert_array_equal(inputs(range(10), 2), whole)  # whatever the batch
    np.testing.assert_array_equal(inputs([1], 10), whole[10:])  # or where a run resumes
    parts = [inputs([0], 10, shard=Shard(i, 2)) for i in range(2)]  # or how many processes read
    np.testing.assert_array_equal(np.concatenate(parts), whole[:10])
    assert not np.isin(inputs(range(2), 10, seed=1), whole).any()
    np.testing.assert_array_equal(train.examples(np.arange(10))["x"], 0)
    assert isinstance(open_pipeline(data, data.splits()["validation"], "validation"), InMemory)


def test_random_host_transforms_in_memory_are_refused():
    data = noisy(pipeline="in_memory")
    with pytest.raises(UserError, match=r"data.transforms.0 \(Noise\) draws anew in each epoch"):
        open_pipeline(data, data.splits()["train"], "train")


def test_worker_processes_draw_the_same():
    data = Arrays(
        {"train": {"image": np.random.default_rng(0).integers(0, 255, (6, 9, 9, 1), np.uint8)}},
        transforms=(RandomResizedCrop(height=4, width=4),),
    )
    train = open_pipeline(data, data.load()["train"], "train")
    one, other = (train.step_inputs(1, 4, 3, Shard(), workers) for workers in (0, 1))
    for _ in range(2):
        np.testing.assert_array_equal(next(one)["image"], next(other)["image"])
