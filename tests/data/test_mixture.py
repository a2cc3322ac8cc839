"""Several data sets in one batch, each with its own share."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Arrays, Mixture, Scale, Stream, Subset
from jdl.data.order import Mixing
from jdl.data.pipeline import InMemory, Shard, open_pipeline
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Pmap, Single
from jdl.tasks import Classification

FEW, MANY = 6, 20


def arrays(count, first=0, **more):
    """Images that hold their number, and labels."""
    image = np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1)
    return {"image": image, **more}


def few(**options):
    label = np.arange(FEW, dtype=np.int32) % 3
    splits = {
        "train": arrays(FEW, label=label),
        "test": arrays(5, 1000, label=np.zeros(5, np.int32)),
    }
    return Arrays(splits, validation_fraction=0, **options)


def many(**options):
    return Arrays({"train": arrays(MANY, 100)}, test_fraction=0, validation_fraction=0, **options)


def mixture(weight=3.0, **options):
    return Mixture(
        (Stream("labeled", few()), Stream("unlabeled", many(), weight=weight)), **options
    )


def batches(data, count, size=8, seed=0, shard=None, start=0):
    pipeline = open_pipeline(data, data.splits()["train"], "train")
    for step in range(start, start + count):
        step_input = pipeline.step_input(step, size, seed, shard or Shard())
        yield pipeline.examples(step_input) if isinstance(pipeline, InMemory) else step_input


@pytest.mark.parametrize(
    "shares", [(1, 3), (1, 1), (7, 3), (1, 2, 5), (0.3, 0.5, 0.1, 0.1), (1, 1000)]
)
def test_batches_have_the_shares_exactly_where_they_are_whole(shares):
    exact = tuple(Fraction(share).limit_denominator(1000) for share in shares)
    exact = tuple(share / sum(exact) for share in exact)
    mixing = Mixing((10,) * len(shares), exact)
    number, place = mixing.streams(np.arange(3000))
    for stream, share in enumerate(exact):
        own = number == stream
        np.testing.assert_array_equal(place[own], np.arange(own.sum()))
        counts = np.concatenate([[0], np.cumsum(own)])
        for size in (8, 10, 100):
            found = counts[size:] - counts[:-size]
            whole = all((size * each).denominator == 1 for each in exact)
            slack = 0 if whole else 1 if stream == 0 or len(shares) == 2 else 2
            assert np.abs(found[::size] - float(size * share)).max() <= slack
            assert np.abs(found - float(size * share)).max() <= max(slack, 1)
    later = mixing.streams(np.arange(2000, 3000))
    np.testing.assert_array_equal(later, (number[2000:], place[2000:]))


@pytest.mark.parametrize("pipeline", ["in_memory", "grain"])
def test_batches_have_each_streams_share_and_every_example_before_any_comes_again(pipeline):
    data = mixture(pipeline=pipeline)
    seen = {"labeled": [], "unlabeled": []}
    for batch in batches(data, 8):
        assert [batch[name].sum() for name in seen] == [2, 6]
        np.testing.assert_array_equal(batch["labeled"], ~batch["unlabeled"])
        images = batch["image"].ravel()
        np.testing.assert_array_equal(batch["labeled"], images < 100)
        np.testing.assert_array_equal(batch["label"], np.where(images < 100, images % 3, 0))
        for name in seen:
            seen[name] += images[batch[name]].tolist()
    for name, size in (("labeled", FEW), ("unlabeled", MANY)):
        passes = [seen[name][i : i + size] for i in range(0, len(seen[name]) - size + 1, size)]
        assert all(len(set(each)) == size for each in passes), "each once before it begins again"
        assert passes[0] != passes[1], "in a new order"


def test_both_pipelines_shards_and_a_later_start_give_the_same_batches():
    first, other = (list(batches(mixture(pipeline=p), 6)) for p in ("in_memory", "grain"))
    halves = [list(batches(mixture(), 6, shard=Shard(i, 2))) for i in range(2)]
    later = list(batches(mixture(), 2, start=4))
    for step, batch in enumerate(first):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, other[step][name])
            np.testing.assert_array_equal(array, np.concatenate([h[step][name] for h in halves]))
            if step >= 4:
                np.testing.assert_array_equal(array, later[step - 4][name])


def test_an_epoch_ends_when_every_example_of_every_stream_was_seen():
    assert Splits(mixture(3.0)).epoch_size == 27  # 20 of 3/4 of the positions
    assert Splits(mixture(9.0)).epoch_size == 60  # 6 of 1/10
    assert Splits(mixture()).count("train") == FEW + MANY
    experiment = Experiment(
        model=MLP((), 3), task=Classification(), data=mixture(9.0), epochs=2, batch_size=10
    )
    run = jdl.train(dataclasses.replace(experiment, hooks=(), strategy=Single()))
    assert (run.steps, run.steps_per_epoch) == (12, 6)


def test_evaluation_splits_are_those_of_the_first_stream_with_the_same_arrays():
    splits = mixture().splits()
    assert {name: len(source) for name, source in splits.items()} == {"train": 26, "test": 5}
    example = splits["test"][3]
    assert [example[name].item() for name in ("image", "labeled", "unlabeled")] == [1003, 1, 0]
    assert set(example) == set(splits["train"][FEW]) == {"image", "label", "labeled", "unlabeled"}


def test_streams_keep_some_arrays_and_have_their_own_host_transforms():
    def double(example):
        return {**example, "image": 2 * example["image"]}

    data = few(transforms=(double,))
    streams = (Stream("labeled", data), Stream("unlabeled", data, names=("image",)))
    source = Mixture(streams).splits()["train"]
    assert [source[FEW + 2][name].item() for name in ("image", "label")] == [4, 0]
    assert [source[2][name].item() for name in ("image", "label")] == [4, 2]


def test_fingerprints_change_with_any_stream():
    prints = {
        Splits(data).fingerprints()["train"]["sha256"]
        for data in (mixture(), mixture(), Mixture((Stream("labeled", few()), Stream("x", few()))))
    }
    assert len(prints) == 2


def test_a_mixture_trains_alike_and_resumes(tmp_path):
    experiment = Experiment(
        model=MLP((), 3),
        task=Classification(),
        data=mixture(device_transforms=(Scale(divisor=100.0),)),
        optimizer=SGD(0.1),
        strategy=Single(),
        hooks=(Checkpoint(every=3),),
        steps=9,
        batch_size=8,
    )
    whole = jdl.train(experiment, tmp_path / "whole")
    jdl.train(dataclasses.replace(experiment, steps=6), tmp_path / "broken")
    again = jdl.train(experiment, tmp_path / "broken")
    assert again.result["params_sha256"] == whole.result["params_sha256"]
    other = jdl.train(dataclasses.replace(experiment, strategy=Pmap(2), hooks=()))
    for name, value in whole.evaluate("test").items():
        assert other.evaluate("test")[name] == pytest.approx(value, rel=1e-5)


class Empty(Arrays):
    def splits(self):
        found = super().splits()
        return {**found, "none": Subset(found["train"], np.zeros(0, int))}


ONE = Stream("a", few())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture((ONE,)), "two streams or more, not 1"),
        (lambda: Mixture((ONE, Stream("a", many()))), "two streams named 'a'"),
        (lambda: Mixture((ONE, Stream("mask", many()))), "a stream named 'mask'"),
        (lambda: Mixture((ONE, Stream("label", many()))).splits(), "name of an array of the data"),
        (
            lambda: Stream("a", few(), weight=0.0),
            "weight of stream 'a' is finite and above 0, not 0",
        ),
        (lambda: Stream("a", few(device_transforms=(Scale(),))), "has device_transforms of its"),
        (
            lambda: Mixture((ONE, Stream("b", many(), names=("label",)))).splits(),
            "stream 'b' has no array 'label'",
        ),
        (
            lambda: Mixture((ONE, Stream("b", many(), split="extra"))).splits(),
            "there is no split 'extra'",
        ),
        (
            lambda: Mixture(
                (ONE, Stream("b", Empty({"train": arrays(99)}), split="none"))
            ).splits(),
            "stream 'b' has no examples in 'none'",
        ),
        (
            lambda: Mixture(
                (ONE, Stream("b", Arrays({"train": {"image": np.zeros((9, 2, 2, 1))}})))
            ).splits(),
            r"'image' is float32\[1, 1, 1\] in stream 'a' and float32\[2, 2, 1\] in 'b'",
        ),
        (
            lambda: Mixture(
                (
                    Stream("a", few(class_names=("x", "y", "z"))),
                    Stream("b", few(class_names=("y", "x", "z"))),
                )
            ).splits(),
            r"streams 'a' and 'b' number other classes \(x, y, z and y, x, z\)",
        ),
    ],
)
def test_streams_that_do_not_fit_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
