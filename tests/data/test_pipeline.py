"""Both pipelines: the same examples in the same order, each once an epoch, from any position."""

import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import AlternatingFlip, Arrays, RandomFlip, Source
from jdl.data.base import Data
from jdl.data.pipeline import InMemory, Shard, Streamed, open_pipeline, to_batch
from jdl.errors import UserError
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, Pmap, Single
from jdl.sweeps.seeds import train_seeds

COUNT, SIZE = 23, 5  # neither divides the other
ALONE = Shard()


def opened(pipeline, arrays=None, name="train", **options):
    """A pipeline over examples whose label is their number."""
    numbers = np.arange(COUNT)
    arrays = arrays or {"image": np.stack([numbers, numbers**2], 1) / 4, "label": numbers}
    data = Arrays({"train": arrays}, pipeline=pipeline, **options)
    return open_pipeline(data, data.load()["train"], name)


def take(pipeline, steps, start=0, size=SIZE, seed=0, shard=ALONE, workers=0):
    """The batches of some steps as NumPy arrays by name."""
    step_inputs = pipeline.step_inputs(start, size, seed, shard, workers)
    in_memory = {}
    if isinstance(pipeline, InMemory):
        in_memory = {name: jnp.asarray(array) for name, array in pipeline.arrays.items()}
    return [
        {name: np.asarray(array) for name, array in to_batch(in_memory, step_input).items()}
        for step_input in islice(step_inputs, steps)
    ]


def labels(*args, **options):
    return np.concatenate([batch["label"] for batch in take(*args, **options)])


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_grain_gives_what_the_resident_set_gives(workers):
    transforms = (lambda example: {**example, "image": example["image"] * 2},)
    in_memory = take(opened("in_memory", transforms=transforms), 12, start=2, seed=3)
    streamed = opened("grain", transforms=transforms)
    assert isinstance(streamed, Streamed)
    assert same(take(streamed, 12, start=2, seed=3, workers=workers), in_memory)
    assert set(in_memory[0]) == {"image", "label", "mask"}
    for batch in in_memory:
        assert batch["mask"].all()
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        numbers = batch["label"].astype(np.float32)
        np.testing.assert_array_equal(batch["image"], np.stack([numbers, numbers**2], 1) / 2)


def test_a_worker_process_knows_the_functions_of_an_experiment_file(tmp_path):
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "own.py").write_text(
        """
import numpy as np
from helper import double
from jdl import Experiment
from jdl.data import Arrays
from jdl.models import MLP


def enlarge(example):
    return {**example, "image": double(example["image"])}


numbers = np.arange(9)
data = Arrays(
    {"train": {"image": numbers / 4, "label": numbers}}, pipeline="grain", transforms=(enlarge,)
)
experiment = Experiment(model=MLP(), data=data, steps=1)
"""
    )
    data = jdl.load(tmp_path / "own.py").experiment.data
    pipeline = open_pipeline(data, data.load()["train"], "train")
    here = take(pipeline, 3)
    assert here[0]["image"].tolist() == (here[0]["label"] / 2).tolist()
    assert same(take(pipeline, 3, workers=1), here)


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
@pytest.mark.parametrize("size", [1, SIZE, COUNT, 2 * COUNT + 1])
def test_each_epoch_holds_every_example_once_in_an_order_of_its_own(kind, size):
    epochs = 4
    seen = labels(opened(kind), -(-epochs * COUNT // size), size=size)
    orders = [tuple(seen[COUNT * epoch : COUNT * (epoch + 1)]) for epoch in range(epochs)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({*orders, tuple(range(COUNT))}) == epochs + 1


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
def test_the_order_is_the_seed_s(kind):
    first, again, other = (labels(opened(kind), 9, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:COUNT], other[:COUNT])


def test_every_place_in_an_epoch_is_equally_likely_for_every_example():
    pipeline = opened("in_memory", {"label": np.arange(4)})
    counts = np.zeros((4, 4))
    for numbers in islice(pipeline.step_inputs(0, 4, 0, ALONE), 4000):
        counts[np.arange(4), numbers] += 1
    # Chi-square with 9 degrees of freedom: above 27.9 in one of a thousand seeds.
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
def test_starting_at_a_step_skips_the_batches_before(kind):
    pipeline = opened(kind)
    whole = take(pipeline, 14)
    for start in (0, 1, 4, 5, 11):
        assert same(take(pipeline, 3, start=start), whole[start : start + 3])


def test_a_far_position_is_reached_without_the_way_there():
    start = 10**9
    batch = take(opened("grain"), 1, start=start)
    assert same(batch, take(opened("in_memory"), 1, start=start))
    near = labels(opened("in_memory"), 2 * COUNT, start=start - start % COUNT)
    assert Counter(near.tolist()) == Counter(dict.fromkeys(range(COUNT), 2 * SIZE))


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_every_batch(kind, count):
    pipeline, size = opened(kind), 6
    whole = take(pipeline, 7, start=1, size=size)
    parts = [take(pipeline, 7, start=1, size=size, shard=Shard(i, count)) for i in range(count)]
    assert all(len(batch["label"]) == size // count for part in parts for batch in part)
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
@pytest.mark.parametrize("size", [2, 6, COUNT + 1, 60])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_covers_every_example_once(kind, size, count):
    pipeline = opened(kind)
    parts = [list(pipeline.evaluation_batches(size, Shard(i, count))) for i in range(count)]
    assert {len(part) for part in parts} == {-(-COUNT // size)}
    rows = [batch for step in zip(*parts, strict=True) for batch in step]
    assert all(len(value) == size // count for batch in rows for value in batch.values())
    mask = np.concatenate([batch["mask"] for batch in rows])
    numbers = np.concatenate([batch["label"] for batch in rows])
    assert mask.dtype == bool
    assert numbers[mask].tolist() == list(range(COUNT))
    assert set(numbers[~mask].tolist()) <= set(range(COUNT))  # padding is made of real rows


@pytest.mark.parametrize("size", [1, 6, COUNT + 1, 60])
def test_a_streamed_evaluation_equals_one_in_memory(size):
    streamed, in_memory = opened("grain"), opened("in_memory")
    for shard in (ALONE, Shard(1, 2)) if size % 2 == 0 else (ALONE,):
        found = list(streamed.evaluation_batches(size, shard))
        assert same(found, list(in_memory.evaluation_batches(size, shard)))


def whereabouts(example):
    """Adds the process that reads an example, and whether its main thread does."""
    main = threading.current_thread() is threading.main_thread()
    return {**example, "process": np.int64(os.getpid()), "main": main}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_evaluation_is_read_ahead_of_the_main_thread(workers):
    streamed = opened("grain", transforms=(whereabouts,))
    found = list(streamed.evaluation_batches(SIZE, ALONE, workers))
    processes = {int(process) for batch in found for process in batch.pop("process")}
    main = np.concatenate([batch.pop("main") for batch in found])
    assert same(found, list(opened("in_memory").evaluation_batches(SIZE, ALONE)))
    if workers:
        assert len(processes) == workers
        assert os.getpid() not in processes
    else:
        assert processes == {os.getpid()}
        assert not main.any()


def test_auto_keeps_in_memory_what_fits(monkeypatch):
    size = COUNT * (2 * 4 + 4)  # two float32 and an int32 an example
    for limit, kind in ((size, InMemory), (size - 1, Streamed)):
        monkeypatch.setattr("jdl.data.pipeline.IN_MEMORY_BYTES", limit)
        assert isinstance(opened("auto"), kind)
        assert isinstance(opened("in_memory"), InMemory)
        assert isinstance(opened("grain"), Streamed)


@dataclass(frozen=True, kw_only=True)
class Counting(Data):
    """Counts how often each example is read."""

    reads: Counter = field(default_factory=Counter)

    def load(self) -> dict[str, Source]:
        return {"train": self}

    def full_name(self):
        return "counting"

    def __len__(self):
        return 5000

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"label": np.int64(index)}


def test_a_streamed_set_is_read_only_as_it_is_needed():
    data = Counting(pipeline="grain")
    pipeline = open_pipeline(data, data.load()["train"], "train")
    assert data.reads.total() < 20
    before = data.reads.total()
    assert len(labels(pipeline, 3, size=4)) == 12
    assert data.reads.total() - before < 200  # some are read ahead


def test_a_resident_set_is_read_once():
    data = Counting(pipeline="in_memory")
    pipeline = open_pipeline(data, data.load()["train"], "train")
    assert set(data.reads) == set(range(5000))
    before = data.reads.total()
    assert before < 5020  # and a few to look at shapes
    assert len(labels(pipeline, 3, size=4)) == 12
    assert data.reads.total() == before


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
def test_text_is_left_out_and_wide_numbers_narrow(kind):
    arrays = {
        "text": np.array([b"a", b"bc"]),
        "real": np.array([0.5, 2.0]),
        "big": np.array([2**31 - 1, -(2**31)]),
        "small": np.array([1, 2], np.uint8),
        "flag": np.array([True, False]),
    }
    (batch,) = opened(kind, arrays).evaluation_batches(2, ALONE)
    kinds = {name: value.dtype.name for name, value in batch.items()}
    assert kinds == {
        "real": "float32",
        "big": "int32",
        "small": "uint8",
        "flag": "bool",
        "mask": "bool",
    }
    assert batch["big"].tolist() == [2**31 - 1, -(2**31)]


def test_numbers_that_do_not_narrow_are_named():
    arrays = {"label": np.array([[1, 2], [3, 2**40]])}
    with pytest.raises(UserError, match=f"'label' holds {2**40}, which does not fit"):
        opened("in_memory", arrays)


def test_only_text_is_nothing_to_read():
    with pytest.raises(UserError, match="split 'train' holds no numbers"):
        opened("in_memory", {"text": np.array(["a", "b"])})


def test_a_run_under_grain_equals_one_on_the_resident_set(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    arrays = {"image": images, "label": (images[:, 0, 0, 0] > 127).astype(np.int64)}
    runs = {}
    for kind in ("in_memory", "grain"):
        experiment = jdl.Experiment(
            model=MLP(widths=(), features=2),
            data=Arrays(
                {"train": arrays},
                pipeline=kind,
                transforms=(lambda example: {**example, "image": example["image"] / 256},),
                device_transforms=(RandomFlip(),),
            ),
            optimizer=SGD(0.1),
            steps=7,
            batch_size=SIZE * 2,
            hooks=(),
            final_train_evaluation=True,
        )
        runs[kind] = jdl.train(experiment, tmp_path / kind).result
    assert runs["grain"]["params_sha256"] == runs["in_memory"]["params_sha256"]
    assert runs["grain"]["metrics"] == runs["in_memory"]["metrics"]


def test_positions_are_added_where_a_transform_reads_them():
    options = {"device_transforms": (AlternatingFlip(),)}
    in_memory = take(opened("in_memory", **options), 12, start=2, seed=3)
    assert same(take(opened("grain", **options), 12, start=2, seed=3), in_memory)
    index, epoch, label = (
        np.concatenate([batch[name] for batch in in_memory]) for name in ("index", "epoch", "label")
    )
    np.testing.assert_array_equal(index, label)
    np.testing.assert_array_equal(epoch, np.arange(2 * SIZE, 14 * SIZE) // COUNT)
    for batch in opened("in_memory", **options).evaluation_batches(SIZE, ALONE):
        assert batch.keys() == {"image", "label", "mask"}
    numbers = np.arange(COUNT)
    taken = {"image": numbers, "label": numbers, "epoch": numbers}
    with pytest.raises(UserError, match="has an array 'epoch', by which a device transform"):
        take(opened("in_memory", taken, **options), 1)


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs():
    images = np.random.default_rng(0).random((40, 2, 2, 1)).astype(np.float32)
    arrays = {"image": images, "label": np.arange(40)}
    pipeline = opened("in_memory", arrays, device_transforms=(AlternatingFlip(),))
    shown = {}
    for batch in take(pipeline, 16):
        given = {name: jnp.asarray(array) for name, array in batch.items()}
        flipped = np.asarray(AlternatingFlip()(given, jnp.zeros(SIZE))["image"])
        for label, epoch, image in zip(batch["label"], batch["epoch"], flipped, strict=True):
            mirrored = np.array_equal(image, images[label][:, ::-1])
            assert mirrored != np.array_equal(image, images[label])
            shown[label, epoch] = mirrored
    first = np.array([shown[label, 0] for label in range(40)])
    np.testing.assert_array_equal(first, [not shown[label, 1] for label in range(40)])
    assert 10 < first.sum() < 30
    batch = {"image": images, "label": np.arange(40)}
    assert AlternatingFlip()(batch, None) is batch


def test_a_run_with_an_alternating_flip_evaluates_and_predicts_without_positions(tmp_path):
    images = np.random.default_rng(0).random((20, 2, 2, 1)).astype(np.float32)
    data = Arrays(
        {"train": {"image": images, "label": np.arange(20) % 2}},
        device_transforms=(AlternatingFlip(),),
        validation_fraction=0.0,
    )
    experiment = jdl.Experiment(MLP((4,), 2), data=data, epochs=1, batch_size=4, hooks=())
    run = jdl.train(experiment, tmp_path / "run")
    again = jdl.open(tmp_path / "run", experiment)
    np.testing.assert_array_equal(again.predict(images), run.predict(images))
    assert again.evaluate("test") == run.evaluate("test")
    assert set(again.batch) == {"image", "label", "mask"}


def test_positions_reach_every_strategy_and_several_steps_per_execution(tmp_path):
    images = np.random.default_rng(0).random((20, 2, 2, 1)).astype(np.float32)
    data = Arrays(
        {"train": {"image": images, "label": np.arange(20) % 2}},
        device_transforms=(AlternatingFlip(),),
        validation_fraction=0.0,
        test_fraction=0.0,
    )

    def losses(run):
        return run.history["train"]["loss"]

    experiment = jdl.Experiment(
        MLP((4,), 2), data=data, optimizer=SGD(0.5), strategy=Single(), hooks=(), steps=12,
        batch_size=4, runtime=jdl.Runtime(log_every=1),
    )  # fmt: skip
    expected = losses(jdl.train(experiment))
    assert len(expected) == 12
    for changes in (
        {"strategy": DataParallel(devices=2)},
        {"strategy": Pmap(devices=2)},
        {"runtime.steps_per_execution": 3},
        {"data.pipeline": "grain"},
    ):
        found = losses(jdl.train(jdl.override(experiment, changes)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    train_seeds(experiment, 2, tmp_path / "seeds", vectorize="always")
    found = losses(jdl.open(tmp_path / "seeds" / "seed-0"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    plain = jdl.override(experiment, {"data.device_transforms": ()})
    assert not np.allclose(losses(jdl.train(plain)), expected, rtol=1e-3)
