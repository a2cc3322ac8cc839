"""Networks inside a task that do not train: a frozen extractor, a teacher."""

import dataclasses
import functools
from dataclasses import dataclass, field

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.metrics import Mean, compute
from jdl.models import CNN, MLP
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.step import Program
from jdl.tasks import Classification, Frozen, Task, forward, teacher_params
from tests.interruptions import InterruptAt, Killed

ROWS = 8
EXTRACTOR = CNN((4,), (), 3, batch_norm=True)


@dataclass(frozen=True, kw_only=True)
class Guided(Task):
    """Follows the average of its own weights, and the outputs of a frozen network."""

    loss_terms: tuple[tuple[str, float], ...] = (("teacher", 1.0), ("features", 0.5))
    extractor: Frozen = field(default=Frozen(EXTRACTOR, name="extractor"))

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        images = batch["image"]
        found, collections = forward(model, params, {}, images + 1, train=train, key=key)
        wanted = self.extractor(state, images)
        metrics = {"features": Mean.of(((found - wanted) ** 2).mean(1), batch["mask"])}
        if train:
            taught, _ = forward(model, teacher_params(state), {}, images, train=False)
            metrics["teacher"] = Mean.of(((found - taught) ** 2).mean(1), batch["mask"])
        return metrics, {**state.collections, **collections}


OPTIMIZER = SGD(0.1, ema_decay=0.9)
PROGRAM = Program(MLP((8,), 3, nn.tanh), Guided(), OPTIMIZER.build(100))


def step_input(seed):
    image = np.random.default_rng(seed).normal(size=(ROWS, 8, 8, 1))
    return {"image": np.float32(image), "mask": np.arange(ROWS) < ROWS - seed % 3}


@functools.cache
def descend(strategy, parts=1, count=4):
    """Losses, all parameters on the way, the first and last collections, and teachers."""
    program = dataclasses.replace(PROGRAM, num_microbatches=parts)
    steps = strategy.compile(program, {}, step_input(0))
    state = steps.init(jax.random.key(3))
    first = jax.tree.map(np.asarray, steps.gather(state).collections)
    rows, params = [], []
    for seed in range(count):
        state, packed = steps.update(state, steps.put(step_input(seed)))
        rows.append(compute(packed.unpack()[0]))
        params.append(jax.tree.map(np.asarray, steps.gather(state).params))
    whole = steps.gather(state)
    return rows, params, first, whole, jax.tree.map(np.asarray, teacher_params(whole))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [Single(), DataParallel(2), FullySharded(2, min_elements=1), Pmap(2)],
    ids=lambda s: type(s).__name__,
)
def test_a_frozen_network_stays_and_a_teacher_is_the_average_under_every_strategy(strategy, parts):
    rows, params, first, state, teacher = descend(strategy, parts)
    expected, other, *_ = descend(Single())
    for name in ("loss", "teacher", "features"):
        np.testing.assert_allclose(
            [row[name] for row in rows], [row[name] for row in expected], rtol=1e-5, atol=1e-7
        )
    chex.assert_trees_all_close(params[-1], other[-1], atol=1e-6)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, state.collections), first)
    assert {name: set(first[name]) for name in first} == {"extractor": {"params", "batch_stats"}}
    weights = 0.9 ** np.arange(len(params))[::-1]
    mean = jax.tree.map(lambda *x: sum(w * p for w, p in zip(weights, x, strict=True)), *params)
    mean = jax.tree.map(lambda x: x / weights.sum(), mean)
    chex.assert_trees_all_close(teacher, mean, atol=1e-6)


def test_frozen_networks_and_teachers_are_sharded():
    steps = FullySharded(2, min_elements=1).compile(PROGRAM, {}, step_input(0))
    state = steps.init(jax.random.key(0))
    kernel = state.collections["extractor"]["params"]["Conv_0"]["kernel"]
    (average,) = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mean"))[-1:]
    for array in (kernel, average.mean["Dense_0"]["kernel"]):
        assert array.addressable_shards[0].data.size == array.size // 2


def experiment(task=None, **changes):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(24, 8, 8, 1)), "label": rng.integers(0, 3, 24)}
    settings = {
        "model": PROGRAM.model,
        "task": task or Guided(targets="image"),
        "data": Arrays({"train": arrays}, test_fraction=0, validation_fraction=0),
        "optimizer": OPTIMIZER,
        "strategy": Single(),
        "hooks": (Checkpoint(every=2),),
        "batch_size": 8,
        "steps": 6,
    }
    return Experiment(**(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("untrained")


@pytest.fixture(scope="module")
def pretrained(folder):
    """A run whose network is an extractor."""
    own = experiment(Classification(), model=EXTRACTOR, optimizer=SGD(0.1), steps=2)
    return jdl.train(own, folder / "pretrained")


def test_weights_come_from_a_run_and_a_broken_run_ends_bit_equal(folder, pretrained):
    extractor = Frozen(EXTRACTOR, name="extractor", run=str(folder / "pretrained"))
    whole = experiment(Guided(targets="image", extractor=extractor))
    run = jdl.train(whole, folder / "whole")
    state = run.gather_state()
    chex.assert_trees_all_equal(state.collections["extractor"]["params"], pretrained.params)
    stats = pretrained.gather_state().collections["batch_stats"]
    chex.assert_trees_all_equal(state.collections["extractor"]["batch_stats"], stats)
    broken = dataclasses.replace(whole, hooks=(*whole.hooks, InterruptAt(at=5)))
    with pytest.raises(Killed):
        jdl.train(broken, folder / "broken")
    again = jdl.train(whole, folder / "broken").gather_state()
    for name in ("params", "collections", "opt_state"):
        chex.assert_trees_all_equal(getattr(again, name), getattr(state, name))
    x = np.zeros((3, 8, 8, 1))
    np.testing.assert_array_equal(jdl.open(folder / "broken").predict(x), run.predict(x))


def test_gradients_pass_through_a_frozen_network_to_its_inputs():
    _, _, _, state, _ = descend(Single())
    images = jnp.asarray(step_input(0)["image"])
    network = Guided().extractor
    slope = jax.grad(lambda x: network(state, x).sum())(images)
    assert np.abs(slope).max() > 0
    own = jax.grad(lambda s: network(s, images).sum(), allow_int=True)
    found = own(state.replace(key=jnp.zeros(())))
    assert not any(np.any(x) for x in jax.tree.leaves(found.collections))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": SGD(0.1)}, r"reads a teacher.* set optimizer\.ema_decay"),
        (
            {"task": Guided(targets="image", extractor=Frozen(EXTRACTOR, name="params"))},
            r"task\.extractor\.name is 'params'",
        ),
        (
            {"task": Guided(targets="image", extractor=Frozen(EXTRACTOR, run="/nowhere"))},
            "the frozen network 'frozen' of the task: init_from.run: /nowhere does not exist",
        ),
        (
            {
                "model": EXTRACTOR,
                "task": Guided(targets="image", extractor=Frozen(EXTRACTOR, name="batch_stats")),
            },
            "the model has a collection 'batch_stats', as which the task has a frozen network",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        jdl.train(experiment(**change))
