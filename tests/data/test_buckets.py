"""Bucketing: every example once in a window, whatever devices read it and where a run resumes."""

import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Buckets, Pad
from jdl.data.order import example_indices
from jdl.data.pipeline import Shard, Streamed, open_pipeline
from jdl.errors import UserError
from jdl.models import MLP
from tests.runs import make_experiment

COUNT, BATCH = 100, 10
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 21, COUNT)
FRAMES = np.where(np.arange(20) < LENGTHS[:, None], RNG.uniform(1, 2, (COUNT, 20)), 0)
BUCKETS = Buckets((5, 10), names=("frames",), window=4)


def arrays(buckets=BUCKETS, **changes):
    split = {"frames": FRAMES.astype(np.float32), "index_of": np.arange(COUNT)}
    return Arrays(
        {"train": split}, buckets=buckets, test_fraction=0, validation_fraction=0, **changes
    )


def opened(**changes):
    data = arrays(**changes)
    return open_pipeline(data, data.splits()["train"], "train")


def test_each_window_has_the_examples_that_it_has_without_buckets():
    train = opened()
    assert isinstance(train, Streamed)
    seen, waste = [], []
    for window in range(5):  # two epochs of ten batches, in windows of four
        steps = range(4 * window, 4 * window + 4)
        batches = [train.step_input(step, BATCH, 3, Shard()) for step in steps]
        found = np.concatenate([batch["index_of"] for batch in batches])
        positions = np.arange(40 * window, 40 * window + 40)
        np.testing.assert_array_equal(np.sort(found), np.sort(example_indices(positions, COUNT, 3)))
        for batch in batches:
            lengths = LENGTHS[batch["index_of"]]
            expected = next(b for b in (5, 10, 20) if b >= lengths.max())
            assert batch["frames"].shape == (BATCH, expected)
            np.testing.assert_array_equal(
                batch["frames"], FRAMES[batch["index_of"], :expected].astype(np.float32)
            )
            waste.append(lengths.max() - lengths.mean())
        seen.append(found)
    assert np.mean(waste) < 3  # at random about 9
    np.testing.assert_array_equal(np.bincount(np.concatenate(seen)), 2)
    assert len({tuple(each) for each in seen}) == 5


def test_processes_and_resumed_runs_read_the_same_batches():
    train = opened()
    for step in (0, 5, 17):
        whole = train.step_input(step, BATCH, 3, Shard())
        parts = [train.step_input(step, BATCH, 3, Shard(i, 2)) for i in range(2)]
        for name in whole:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts]), whole[name]
            )
    later = train.step_inputs(5, BATCH, 3, Shard())
    np.testing.assert_array_equal(
        next(later)["index_of"], train.step_input(5, BATCH, 3, Shard())["index_of"]
    )
    other = train.step_input(0, BATCH, 4, Shard())["index_of"]
    assert not np.array_equal(other, train.step_input(0, BATCH, 3, Shard())["index_of"])


def test_a_window_is_at_most_an_epoch():
    train = opened(buckets=Buckets((5, 10), names=("frames",), window=1000))
    found = [train.step_input(step, BATCH, 0, Shard())["index_of"] for step in range(10)]
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(COUNT))


def test_lengths_are_those_of_a_mask():
    lists = [{"x": list(range(n % 7)), "y": 0} for n in range(40)]  # zeros are items here
    data = Arrays(
        {"train": {"y": np.zeros(40)}},
        transforms=(Pad(8, names=("x",)),),
        buckets=Buckets((2, 4), names=("x", "x_mask"), by="x_mask", window=3),
    )
    train = open_pipeline(data, lists, "train")
    np.testing.assert_array_equal(train.lengths, np.arange(40) % 7)
    batch = train.step_input(0, 5, 0, Shard())
    assert batch["x"].shape == batch["x_mask"].shape


def test_evaluation_has_whole_arrays():
    train = opened()
    (batch, *_) = train.evaluation_batches(BATCH, Shard())
    assert batch["frames"].shape == (BATCH, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buckets(()), "ascending boundaries"),
        (lambda: Buckets((5, 4)), "ascending boundaries"),
        (lambda: Buckets((5,), window=0), "window of at least 1"),
        (lambda: arrays(shuffle=False), "set data.shuffle to True"),
        (lambda: opened(pipeline="in_memory"), "data.buckets cuts each batch to another length"),
        (lambda: opened(buckets=Buckets((5,))), "finds no list 'tokens'"),
    ],
)
def test_what_cannot_be_grouped_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_several_steps_in_one_execution_are_refused(tmp_path):
    experiment = make_experiment(
        data=arrays(), model=MLP((2,), 3), runtime=jdl.Runtime(steps_per_execution=2)
    )
    with pytest.raises(UserError, match=r"set runtime.steps_per_execution to 1"):
        jdl.train(experiment, tmp_path / "run")
