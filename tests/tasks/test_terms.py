"""Losses of several terms, and losses that couple the rows of a batch."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

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
from jdl.metrics import Mean, compute, merge
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.step import Program
from jdl.tasks import Classification, Task

ROWS = 8
STRATEGIES = [Single(), DataParallel(2), FullySharded(2, min_elements=1), Pmap(2)]
MODEL = MLP((8,), 3, nn.tanh)


@dataclass(frozen=True, kw_only=True)
class Entropy(Task):
    """Cross-entropy of labeled rows, and entropy of those of which the model is confident."""

    loss_terms: tuple[tuple[str, float], ...] = (("supervised", 1.0), ("entropy", 0.5))

    def loss_and_metrics(self, outputs, batch):
        labeled = batch["mask"] & (batch["label"] >= 0)
        logs = jax.nn.log_softmax(outputs)
        picked = jnp.take_along_axis(logs, jnp.maximum(batch["label"], 0)[:, None], 1)[:, 0]
        entropy = -(jnp.exp(logs) * logs).sum(1)
        confident = batch["mask"] & (jnp.exp(logs).max(1) > 0.45)
        return {
            "supervised": Mean.of(-picked, labeled),
            "entropy": Mean.of(entropy, confident),
        }


TERMS = Program(MODEL, Entropy(), SGD(0.1).build(100))


def step_input(seed):
    """Rows of which the first half is labeled but one, so that micro-batches differ in counts."""
    rng = np.random.default_rng(seed)
    label = np.where(np.arange(ROWS) < 3, rng.integers(0, 3, ROWS), -1).astype(np.int32)
    image = np.float32(rng.normal(size=(ROWS, 2, 2, 1)))
    mask = np.arange(ROWS) < ROWS - seed % 3
    return {"image": image, "label": label, "mask": mask, "labeled": label >= 0}


@functools.cache
def steps_of(strategy, program):
    return strategy.compile(program, {}, step_input(0))


@functools.cache
def descend(strategy, program, count=5):
    steps = steps_of(strategy, program)
    state, rows = steps.init(jax.random.key(3)), []
    for seed in range(count):
        state, packed = steps.update(state, steps.put(step_input(seed)))
        rows.append(compute(packed.unpack()[0]))
    return rows, jax.tree.map(np.asarray, steps.gather(state).params)


def own_descent(count=5):
    """The same by plain gradient descent on the formula."""
    state = steps_of(Single(), TERMS).init(jax.random.key(3))

    def loss(params, example):
        found = Entropy().loss_and_metrics(
            MODEL.apply({"params": params}, example["image"]), example
        )
        supervised, entropy = (found[name] for name in ("supervised", "entropy"))
        means = supervised.total / supervised.count, entropy.total / entropy.count
        return means[0] + 0.5 * means[1], means

    params, rows = state.params, []
    for seed in range(count):
        example = jax.tree.map(jnp.asarray, step_input(seed))
        (value, means), gradient = jax.value_and_grad(loss, has_aux=True)(params, example)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        rows.append((value, *means))
    return np.array(rows), params


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_each_term_is_divided_by_its_own_count_of_the_whole_batch(strategy, parts):
    program = dataclasses.replace(TERMS, num_microbatches=parts)
    rows, params = descend(strategy, program)
    expected, last = own_descent()
    found = [[row[name] for name in ("loss", "supervised", "entropy")] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(params, last, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Further(Classification):
    """The same as a term beside those of labeled rows."""

    labeled: str | None = "labeled"
    loss_terms: tuple[tuple[str, float], ...] = (("supervised", 1.0), ("entropy", 0.5))

    def further_terms(self, model, params, state, batch, outputs, key):
        return {"entropy": Entropy().loss_and_metrics(outputs, batch)["entropy"]}


@pytest.mark.parametrize(("strategy", "parts"), [(Single(), 1), (Pmap(2), 2)], ids=["1", "2x2"])
def test_a_further_term_is_of_all_rows_and_the_supervised_one_of_those_with_labels(strategy, parts):
    program = dataclasses.replace(TERMS, task=Further(), num_microbatches=parts)
    rows, params = descend(strategy, program)
    expected, last = own_descent()
    found = [[row[name] for name in ("loss", "supervised", "entropy")] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(params, last, atol=1e-6)
    state = steps_of(strategy, program).init(jax.random.key(3))
    state = steps_of(strategy, program).gather(state)
    batch = jax.tree.map(jnp.asarray, step_input(1))
    found = compute(Further().evaluate(MODEL, state, batch))
    logits = MODEL.apply({"params": state.params}, batch["image"])[:3]
    right = np.argmax(logits, 1) == batch["label"][:3]
    assert set(found) == {"supervised", "nll", "accuracy"}
    assert found["accuracy"] == pytest.approx(right.mean())


def test_evaluation_merges_the_terms_exactly():
    steps = steps_of(Single(), TERMS)
    state = steps.init(jax.random.key(3))
    parts = [step_input(seed) for seed in range(3)]
    found = compute(merge([steps.evaluate(state, part) for part in parts]))
    whole = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}
    expected = compute(Entropy().evaluate(MODEL, state, whole))
    assert found["loss"] == pytest.approx(found["supervised"] + 0.5 * found["entropy"])
    assert found == pytest.approx(expected, rel=1e-5)


class Plain(Entropy):
    """The terms of the whole batch, of counts that depend on the batch alone."""

    def loss_and_metrics(self, outputs, batch):
        found = super().loss_and_metrics(outputs, batch)
        return {**found, "entropy": Mean(found["entropy"].total, batch["mask"].sum() * 1.0)}


def test_counts_that_depend_on_the_batch_alone_cost_no_second_forward_pass():
    def flops(task):
        program = Program(MLP((256, 256), 3), task, SGD(0.1).build(9), num_microbatches=2)
        steps = Single().compile(program, {}, step_input(0))
        update = jax.jit(functools.partial(jdl.step.update, program))
        lowered = update.lower(steps.abstract_state, step_input(0))
        return lowered.compile().cost_analysis()["flops"]

    assert flops(Plain()) < 1.02 * flops(Classification())


def fit(task, **settings):
    example = step_input(0)
    arrays = {"image": example["image"], "label": np.maximum(example["label"], 0)}
    data = Arrays({"train": arrays}, test_fraction=0, validation_fraction=0)
    settings = {"batch_size": 4, "steps": 2, "hooks": (), "strategy": Single(), **settings}
    return jdl.train(Experiment(model=MODEL, task=task, data=data, **settings))


def test_the_weight_of_a_term_is_overridden_by_its_path():
    experiment = Experiment(model=MODEL, task=Entropy(), data=Arrays({"train": {}}), steps=1)
    changed = jdl.override(experiment, {"task.loss_terms.1.1": 2.0})
    assert changed.task.loss_terms == (("supervised", 1.0), ("entropy", 2.0))


@dataclass(frozen=True, kw_only=True)
class OwnLoss(Task):
    def loss(self, model, params, state, batch, key):
        raise NotImplementedError


class Guided(Task):
    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            lambda: Classification(loss_terms=(("nll", 1.0),)),
            r"returns a metric 'loss', as which task\.loss_terms are added",
        ),
        (
            lambda: Entropy(loss_terms=(("entropi", 1.0),)),
            r"metric 'entropi' is not computed \(those that are: supervised, entropy\)",
        ),
        (lambda: Entropy(loss_terms=(("a", 1.0), ("a", 2.0))), "has 'a' twice"),
        (lambda: Entropy(loss_terms=(("loss", 1.0),)), "has 'loss' as a term"),
        (lambda: Entropy(loss_terms=(("a", float("nan")),)), "pairs of a metric and its weight"),
        (lambda: Entropy(loss_terms=("entropy",)), "pairs of a metric and its weight"),
        (lambda: OwnLoss(loss_terms=(("a", 1.0),)), "which defines its own loss"),
        (lambda: Further(loss_terms=()), r"defines further_terms: set task\.loss_terms"),
        (lambda: Classification(labeled="known"), "has no array 'known'"),
        (
            lambda: Guided(labeled="labeled"),
            r"task\.labeled has no effect on Guided, which defines its own batch_metrics",
        ),
    ],
)
def test_terms_that_cannot_be_meant_are_refused(task, message):
    with pytest.raises(UserError, match=message):
        fit(task())


@dataclass(frozen=True, kw_only=True)
class Contrastive(Task):
    """A contrastive loss: each row is compared with all others of the batch."""

    couples_rows: ClassVar[bool] = True

    def loss_and_metrics(self, outputs, batch):
        near = outputs @ outputs.T - 1e9 * ~batch["mask"]
        rows = -jnp.diagonal(jax.nn.log_softmax(near))
        return {"loss": Mean.of(rows, batch["mask"])}


COUPLED = Program(MODEL, Contrastive(), SGD(0.1).build(100))


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=lambda s: type(s).__name__)
def test_a_loss_that_couples_rows_is_that_of_one_device(strategy):
    rows, params = descend(strategy, COUPLED)
    expected, last = descend(Single(), COUPLED)
    np.testing.assert_allclose(
        [row["loss"] for row in rows], [row["loss"] for row in expected], rtol=1e-5
    )
    chex.assert_trees_all_close(params, last, atol=1e-6)
    scores = []
    for each in (strategy, Single()):
        steps = steps_of(each, COUPLED)
        state = steps.init(jax.random.key(3))
        scores.append(compute(steps.evaluate(state, steps.put(step_input(1)))))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_rows_that_are_coupled_are_not_split_into_micro_batches():
    with pytest.raises(UserError, match="num_microbatches=2 computes the loss of a part"):
        fit(Contrastive(), num_microbatches=2)
