"""All strategies compute the same, each with its own devices and shardings."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn import metrics as sk

from jdl.checkpoint import CheckpointStore
from jdl.data import RandomCrop, RandomFlip
from jdl.data.pipeline import InMemory, Shard
from jdl.errors import UserError
from jdl.files import CheckpointMetadata
from jdl.metrics import (
    AUPRC,
    AUROC,
    CalibrationError,
    ConfusionMatrix,
    MacroF1,
    MeanIoU,
    compute,
    merge,
)
from jdl.models import CNN, MLP
from jdl.optimizers import SGD, Adam
from jdl.parallel import DataParallel, FullySharded, Pmap, Single, state_bytes
from jdl.step import Program
from jdl.tasks import Classification

ONE = [DataParallel(1), FullySharded(1, min_elements=1), Pmap(1)]
TWO = [DataParallel(2), FullySharded(2, min_elements=1), Pmap(2)]
ROWS = 8
MAIN = Program(MLP((8,), 3, nn.tanh), Classification(), Adam(0.01).build(100))
DROPOUT = Program(MLP((8,), 3, nn.tanh, dropout_rate=0.5), Classification(), SGD(0.1).build(100))
NORM = Program(CNN((4,), (), 3, batch_norm=True), Classification(), SGD(0.1).build(100))
LINEAR = Program(MLP((), 3), Classification(), SGD(0.1).build(100))
SCORED = dataclasses.replace(
    LINEAR,
    task=Classification(
        metrics=(AUPRC(), AUROC(), CalibrationError(), ConfusionMatrix(), MacroF1(), MeanIoU())
    ),
)
RANDOM = dataclasses.replace(LINEAR, transforms=(RandomCrop(padding=1), RandomFlip()))


def over(strategies):
    return pytest.mark.parametrize(
        "strategy", strategies, ids=lambda s: f"{type(s).__name__}-{s.devices or 1}"
    )


def step_input(seed, masked=True):
    """A batch of which the second device's rows differ in kind, and in count where `masked`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, ROWS, np.int32)
    image = rng.normal(size=(ROWS, 6, 6, 1)) + label[:, None, None, None]
    image[ROWS // 2 :] *= 2
    kept = ROWS - seed % 4 if masked else ROWS
    return {"image": np.float32(image), "label": label, "mask": np.arange(ROWS) < kept}


@functools.cache
def compiled(strategy, program=MAIN):
    """The compiled steps, and a list that grows whenever something runs through `jax.pmap`."""
    pmap, ran = jax.pmap, []

    def spy(function, **options):
        mapped = pmap(function, **options)
        return lambda *args: (ran.append(function), mapped(*args))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "pmap", spy)
        return strategy.compile(program, {}, step_input(0)), ran


def host(state):
    """A collected state as NumPy arrays."""
    return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


@functools.cache
def fresh(program):
    """A state as NumPy arrays to begin with, made without compiling anything."""
    abstract_state, rng = compiled(Single(), program)[0].abstract_state, np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: np.float32(0.3 * rng.normal(size=x.shape)), abstract_state.params
    )
    return dataclasses.replace(
        abstract_state,
        step=np.zeros((), np.int32),
        key=np.asarray(jax.random.key_data(jax.random.key(3))),
        params=params,
        collections=jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_state.collections),
        opt_state=jax.tree.map(np.asarray, program.optimizer.init(params)),
    )


def lay(steps, state):
    """A state of NumPy arrays on a strategy's devices."""
    state = state.replace(key=jax.random.wrap_key_data(state.key))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_state)
    return steps.shard(jax.device_put(state, shardings))


def descend(strategy, step_inputs, program=MAIN):
    """Losses, and the collected state after one step on each feed."""
    steps, _ = compiled(strategy, program)
    state, losses = lay(steps, fresh(program)), []
    for one in step_inputs:
        state, packed = steps.update(state, steps.put(one))
        (metrics,) = packed.unpack()
        assert metrics["loss"].count == metrics["accuracy"].count == one["mask"].sum()
        losses.append(float(metrics["loss"].total / metrics["loss"].count))
    return losses, host(steps.gather(state))


@functools.cache
def reference(program, count, masked=True):
    return descend(Single(), [step_input(i, masked) for i in range(count)], program)


@over([*ONE, *TWO])
def test_a_hundred_steps_equal_those_of_one_device(strategy):
    """With masks in the second half of the rows, so in the second device's alone."""
    losses, state = descend(strategy, map(step_input, range(100)))
    expected, last = reference(MAIN, 100)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(state.params, last.params, atol=1e-5)
    assert state.step == 100


def test_the_gradient_of_masked_devices_is_no_mean_of_means():
    """What the masks above are for: with 4 and 1 rows, means per device would go elsewhere."""
    example = step_input(3)
    assert example["mask"].reshape(2, -1).sum(1).tolist() == [4, 1]
    whole = descend(Single(), [example], LINEAR)[1].params
    halves = []
    for part in (np.arange(ROWS) < 4, np.arange(ROWS) >= 4):
        one = {**example, "mask": example["mask"] & part}
        halves.append(descend(Single(), [one], LINEAR)[1].params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), mean, whole)
    assert min(jax.tree.leaves(gaps)) > 1e-3


@over(TWO[::2])
def test_micro_batches_on_devices_equal_one_batch_on_one(strategy):
    split = dataclasses.replace(SCORED, num_microbatches=2)
    steps, example = compiled(strategy, split)[0], step_input(2)
    _, packed = steps.update(lay(steps, fresh(split)), steps.put(example))
    kept = {name: array[example["mask"]] for name, array in example.items()}
    check_scores(compute(packed.unpack()[0]), kept, ("macro_f1", "mean_iou"))
    losses, state = descend(strategy, map(step_input, range(5)), split)
    expected, last = reference(LINEAR, 5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    chex.assert_trees_all_close(state.params, last.params, atol=1e-6)


@over(TWO)
def test_dropout_is_that_of_one_device_but_under_pmap(strategy):
    losses, state = descend(strategy, map(step_input, range(8)), DROPOUT)
    expected, last = reference(DROPOUT, 8)
    if isinstance(strategy, Pmap):
        assert np.abs(np.subtract(losses, expected)).min() > 1e-4
    else:
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        chex.assert_trees_all_close(state.params, last.params, atol=1e-5)


@over(TWO)
def test_random_transforms_are_those_of_one_device(strategy):
    """Each row has a key of its own, whatever its device."""
    losses, state = descend(strategy, map(step_input, range(5)), RANDOM)
    expected, last = reference(RANDOM, 5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    chex.assert_trees_all_close(state.params, last.params, atol=1e-5)
    assert np.abs(np.subtract(reference(LINEAR, 5)[0], expected)).max() > 1e-2


@over([Single(), *TWO])
def test_batch_statistics_are_those_of_the_global_batch(strategy):
    example = step_input(0, masked=False)
    kernel = {"params": {"kernel": fresh(NORM).params["Conv_0"]["kernel"]}}
    maps = nn.Conv(4, (3, 3), use_bias=False).apply(kernel, example["image"])
    maps = np.asarray(maps, np.float64).reshape(2, -1, 4)  # by device
    mean, variance = maps.mean((0, 1)), maps.var((0, 1))
    assert np.abs(variance - maps.var(1).mean(0)).max() > 0.1, "the devices' own would be equal"
    _, state = descend(strategy, [example], NORM)
    found = state.collections["batch_stats"]["BatchNorm_0"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.9 + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    losses, state = descend(strategy, [step_input(i, masked=False) for i in range(6)], NORM)
    expected, last = reference(NORM, 6, masked=False)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    chex.assert_trees_all_close(state.params, last.params, atol=1e-5)
    chex.assert_trees_all_close(state.collections, last.collections, atol=1e-5)


class Remembering(nn.Module):
    """Keeps the mean of the last batch in a collection, with no word about devices."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        mean = self.variable("seen", "mean", lambda: jnp.zeros(x.shape[1:]))
        if train:
            mean.value = x.mean(0)
        return nn.Dense(3)(x.reshape(len(x), -1))


@over(TWO)
def test_collections_are_averaged_over_the_devices(strategy):
    compute = dataclasses.replace(LINEAR, model=Remembering())
    _, state = descend(strategy, [step_input(1)], compute)
    expected = step_input(1)["image"].mean(0)
    np.testing.assert_allclose(state.collections["seen"]["mean"], expected, atol=1e-6)


@over(TWO)
def test_initial_parameters_are_those_of_one_device(strategy):
    one, many = (compiled(each)[0] for each in (Single(), strategy))
    expected = host(one.gather(one.init(jax.random.key(5))))
    found = host(many.gather(many.init(jax.random.key(5))))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert np.abs(expected.params["Dense_0"]["kernel"]).min() > 0


def placed(array):
    """The shape of an array's part on each device, by the device's number."""
    return {shard.device.id: shard.data.shape for shard in array.addressable_shards}


HALVES = {(): (), (3,): (3,), (8,): (4,), (8, 3): (4, 3), (36, 8): (18, 8)}
"""What `FullySharded` leaves of each shape in the state on one of two devices."""


@over([Single(), *TWO])
def test_batch_and_state_lie_where_the_strategy_says_and_are_donated(strategy):
    steps, ran = compiled(strategy)
    mapped = isinstance(strategy, Pmap)
    before, batch = lay(steps, fresh(MAIN)), steps.put(step_input(0))
    ran.clear()
    after, _ = steps.update(before, batch)
    assert len(ran) == mapped, "what ran through jax.pmap"
    devices = range(strategy.devices or 1)
    shapes = [leaf.shape for leaf in jax.tree.leaves(fresh(MAIN))]
    for state in (steps.init(jax.random.key(0)), after):
        leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
        for leaf, shape in zip(leaves, shapes, strict=True):
            part = HALVES.get(shape, shape) if isinstance(strategy, FullySharded) else shape
            assert placed(leaf) == dict.fromkeys(devices, (1, *part) if mapped else part)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    if len(devices) == 1:
        return  # the call itself lays the batch beside the state
    # The feed's rows come in order: the first half on the first device.
    parts = {s.device.id: np.asarray(s.data) for s in batch["image"].addressable_shards}
    expected = step_input(0)["image"].reshape(len(devices), -1, 6, 6, 1)
    assert list(parts) == list(devices)
    for device, part in parts.items():
        np.testing.assert_array_equal(part.reshape(expected[device].shape), expected[device])


@over(TWO)
def test_a_bad_row_on_the_second_device_skips_the_step_on_all(strategy):
    steps, _ = compiled(strategy)
    bad = step_input(0)
    bad["image"][-1] = np.nan
    state, packed = steps.update(lay(steps, fresh(MAIN)), steps.put(bad))
    (metrics,) = packed.unpack()
    assert (float(metrics["skipped"].total), float(metrics["loss"].count)) == (1, 0)
    for leaf, old in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(fresh(MAIN).params), strict=True
    ):
        for shard in leaf.addressable_shards:
            index = () if isinstance(strategy, Pmap) else shard.index
            np.testing.assert_array_equal(np.squeeze(shard.data, 0) if index == () else shard.data,
                                          old[index])  # fmt: skip


@over(TWO[1:])
def test_steps_in_one_dispatch_equal_steps_one_by_one(strategy):
    steps, _ = compiled(strategy, LINEAR)
    step_inputs = [step_input(i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *step_inputs)
    state, packed = steps.update_many(lay(steps, fresh(LINEAR)), steps.put_many(stacked))
    expected, last = reference(LINEAR, 3)
    losses = [metrics["loss"].compute() for metrics in packed.unpack()]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    chex.assert_trees_all_close(host(steps.gather(state)).params, last.params, atol=1e-6)


@pytest.mark.parametrize("size", [6, 32])
@over([Single(), *TWO])
def test_evaluation_counts_every_example_once(strategy, size):
    steps, _ = compiled(strategy, SCORED)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(23, 6, 6, 1)).astype(np.float32)
    arrays = {"image": image, "label": rng.integers(0, 3, 23, np.int32)}
    state = lay(steps, fresh(SCORED))
    parts = [
        jax.device_get(steps.evaluate(state, steps.put(batch)))
        for batch in InMemory(arrays).evaluation_batches(size, Shard())
    ]
    assert len(parts) == -(-23 // size)
    total = merge(parts)
    assert total["accuracy"].count == total["loss"].count == 23
    check_scores(compute(total), arrays, ("auroc", "auprc", "macro_f1", "mean_iou"))


def check_scores(scores, arrays, names):
    """Checks metrics of a fresh linear model against scikit-learn's of all rows at once."""
    (layer,) = fresh(SCORED).params.values()
    image, label = arrays["image"], arrays["label"]
    logits = np.asarray(image.reshape(len(image), -1) @ layer["kernel"] + layer["bias"], np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = chances.argmax(1)
    assert scores["accuracy"] == (found == label).mean()
    nats = -np.log(chances[np.arange(len(label)), label])
    np.testing.assert_allclose(scores["loss"], nats.mean(), 1e-5)
    expected = {
        "auroc": sk.roc_auc_score(label, chances, multi_class="ovr"),
        "auprc": sk.average_precision_score(label, chances),
        "macro_f1": sk.f1_score(label, found, average="macro"),
        "mean_iou": sk.jaccard_score(label, found, average="macro"),
    }
    assert {k: scores[k] for k in names} == pytest.approx({k: expected[k] for k in names}, 1e-6)
    assert ("auroc" in scores) == ("confusion_matrix" in scores) == ("auroc" in names)
    if "confusion_matrix" in scores:
        np.testing.assert_array_equal(scores["confusion_matrix"], sk.confusion_matrix(label, found))


def test_fully_sharded_divides_the_bytes_of_parameters_and_moments():
    wide = Program(MLP((128, 128), 64), Classification(), Adam(0.01).build(9))
    held = []
    for strategy in (FullySharded(1), FullySharded(2), DataParallel(2)):
        steps = strategy.compile(wide, {}, step_input(0))
        key = jax.eval_shape(jax.random.key_data, steps.abstract_state.key)
        abstract_state = dataclasses.replace(steps.abstract_state, key=key)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state)
        held.append(state_bytes(lay(steps, zeros)))
    one, two, whole = held
    weights = 36 * 128 + 128 + 128 * 128 + 128 + 128 * 64 + 64
    assert one == whole == pytest.approx(4 * 3 * weights, rel=1e-3)
    assert two == pytest.approx(one / 2, rel=0.1)


def test_fully_sharded_splits_the_largest_dimension_that_fits():
    strategy = FullySharded(2, min_elements=10)
    mesh = strategy.mesh()

    def place(*shape):
        return strategy.partition_spec("params.x", jax.ShapeDtypeStruct(shape, jnp.float32), mesh)

    assert place(4, 8) == P(None, "fsdp")
    assert place(8, 4) == P("fsdp")
    assert place(4, 9) == P("fsdp")
    assert place(3, 3, 2, 6) == P(None, None, None, "fsdp")
    assert place(3, 5) == place(2, 4) == place() == P()


@pytest.mark.parametrize(
    ("saver", "reader"),
    [(TWO[1], Single()), (Single(), TWO[1]), (TWO[2], ONE[0]), (TWO[0], ONE[2]), (TWO[1], TWO[2])],
)
def test_what_one_strategy_saves_another_restores_bit_for_bit(saver, reader, tmp_path):
    store = CheckpointStore(tmp_path)
    old, _ = compiled(saver)
    new, _ = compiled(reader)
    state, _ = old.update(lay(old, fresh(MAIN)), old.put(step_input(0)))
    saved = host(old.gather(state))
    store.save(old.gather(state), CheckpointMetadata(step=1, hooks={"note": 1}), ())
    store.wait()
    found = store.restore_latest(new.abstract_state)
    store.close()
    assert found is not None
    assert found[1] == CheckpointMetadata(step=1, hooks={"note": 1})
    back = new.shard(found[0])
    chex.assert_trees_all_equal(host(new.gather(back)), saved)
    went_on, _ = old.update(state, old.put(step_input(1)))
    came_back, _ = new.update(back, new.put(step_input(1)))
    chex.assert_trees_all_close(
        host(new.gather(came_back)).params, host(old.gather(went_on)).params, atol=1e-6
    )


def test_devices_that_are_not_there_are_refused():
    for strategy in (DataParallel(3), FullySharded(3), Pmap(3)):
        with pytest.raises(UserError, match="devices is 3, but only 2"):
            strategy.compile(LINEAR, {}, step_input(0))
    with pytest.raises(UserError, match="not 0"):
        Pmap(0)
    with pytest.raises(UserError, match="one device"):
        Single(2).used()
