"""Distillation: the terms against their formulas, strategies, and what is left of the teacher."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import jdl
from jdl import Experiment
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import CNN, MLP
from jdl.optimizers import SGD
from jdl.parallel import FullySharded, Pmap, Single
from jdl.step import Program, init, update
from jdl.tasks import Distillation, Frozen

ROWS = 8
TERMS = (("supervised", 0.2), ("distillation", 0.8), ("features", 3.0))
TEACHER = CNN((6, 5), (), 3, batch_norm=True)
TASK = Distillation(
    teacher=Frozen(TEACHER, name="teacher"),
    temperature=3.0,
    features=(("Conv_0", "Conv_0"), ("Conv_1", "BatchNorm_1")),
    loss_terms=TERMS,
)
PROGRAM = Program(CNN((3, 2), (), 3), TASK, SGD(0.1).build(100))


def step_input(seed):
    rng = np.random.default_rng(seed)
    image = np.float32(rng.normal(size=(ROWS, 8, 8, 1)))
    label = rng.integers(0, 3, ROWS).astype(np.int32)
    return {"image": image, "label": label, "mask": np.arange(ROWS) < ROWS - seed % 3}


@functools.cache
def descend(strategy, parts=1, count=2):
    program = dataclasses.replace(PROGRAM, num_microbatches=parts)
    steps = strategy.compile(program, {}, step_input(0))
    state, rows = steps.init(jax.random.key(3)), []
    for seed in range(count):
        state, packed = steps.update(state, steps.put(step_input(seed)))
        rows.append(compute(packed.unpack()[0]))
    return rows, jax.tree.map(np.asarray, steps.gather(state).params)


def attention(x):
    x = np.square(np.asarray(x, np.float64)).sum(-1).reshape(len(x), -1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_terms_are_those_of_the_papers():
    batch = jax.tree.map(jnp.asarray, step_input(1))
    state = init(PROGRAM, jax.random.key(3), batch)
    metrics, _ = TASK._all_metrics(
        PROGRAM.model, state.params, state, batch, train=True, key=state.key
    )
    found = compute(jax.device_get(metrics))

    def apply(model, variables):
        return model.apply(variables, batch["image"], capture_intermediates=True, mutable=True)

    own, student = apply(PROGRAM.model, {"params": state.params})
    taught, teacher = apply(TEACHER, dict(state.collections["teacher"]))
    logs = [log_softmax(np.asarray(x, np.float64) / 3, axis=1) for x in (taught, own)]
    divergence = 9 * (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)
    kept = np.asarray(batch["mask"])
    assert found["distillation"] == pytest.approx(divergence[kept].mean(), rel=1e-4)
    maps = [
        np.square(
            attention(student["intermediates"][a]["__call__"][0])
            - attention(teacher["intermediates"][b]["__call__"][0])
        ).sum(1)
        for a, b in TASK.features
    ]
    assert found["features"] == pytest.approx(np.mean(maps, axis=0)[kept].mean(), rel=1e-4)
    assert found["loss"] == pytest.approx(sum(weight * found[n] for n, weight in TERMS), rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "parts"), [(FullySharded(2, min_elements=1), 1), (Pmap(2), 2)]
)
def test_every_strategy_distills_alike(strategy, parts):
    rows, params = descend(strategy, parts)
    expected, other = descend(Single())
    for name in ("loss", "distillation", "features"):
        np.testing.assert_allclose(
            [row[name] for row in rows], [row[name] for row in expected], rtol=1e-4, atol=1e-6
        )
    chex.assert_trees_all_close(params, other, atol=1e-5)


def trace(program):
    """Traces a step without computing it."""
    return jax.eval_shape(
        lambda key, batch: update(program, init(program, key, batch), batch),
        jax.random.key(0),
        jax.tree.map(jnp.asarray, step_input(0)),
    )


def arrays(count=60):
    rng = np.random.default_rng(0)
    label = np.arange(count) % 2
    return {"image": rng.normal(size=(count, 3)) + 2 * label[:, None], "label": label}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    jdl.train(experiment(MLP((16,), 2), jdl.Experiment.task, 40), workdir)
    return workdir


def experiment(model, task, steps):
    data = Arrays({"train": arrays()}, test_fraction=0.2, validation_fraction=0.0)
    optimizer = SGD(0.1)
    return Experiment(model, task=task, data=data, optimizer=optimizer, steps=steps, batch_size=8)


def test_a_student_of_unlabeled_data_learns_what_its_teacher_knows(teacher, tmp_path):
    task = Distillation(
        teacher=Frozen(MLP((16,), 2), name="teacher", run=str(teacher)),
        loss_terms=(("distillation", 1.0),),
    )
    run = jdl.train(experiment(MLP((), 2), task, 60), tmp_path / "run")
    assert run.result["metrics"]["test"]["accuracy"] > 0.9
    assert set(run.result["metrics"]["test"]) == {"supervised", "nll", "accuracy"}
    opened = jdl.open(tmp_path / "run")
    x = np.float32(arrays()["image"])
    np.testing.assert_allclose(opened.predict(x), run.predict(x), atol=1e-6)
    assert run.predict(x).shape == (60, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"temperature": 0.0}, r"task\.temperature must be above 0, not 0"),
        ({"features": ()}, r"name pairs of modules in task\.features, or drop 'features'"),
        ({"loss_terms": (("distillation", 1.0),)}, r"add \('features', 1\.0\) to task\.loss_terms"),
    ],
)
def test_wrong_values_are_named(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(TASK, **changes)


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ((("Conv_9", "Conv_0"),), r"the model has no module 'Conv_9'.*did you mean 'Conv_"),
        ((("Conv_0", "Conv_9"),), r"the network 'teacher' of the task has no module 'Conv_9'"),
        (
            (("Conv_0", "Conv_1"),),
            r"Conv_0 of the student gives maps of shape \(8, 8\), and Conv_1",
        ),
        ((("logits", "logits"),), r"the outputs of logits have shape \(8, 3\), and no map"),
    ],
)
def test_features_that_do_not_fit_are_named(features, complaint):
    program = dataclasses.replace(PROGRAM, task=dataclasses.replace(TASK, features=features))
    with pytest.raises(UserError, match=complaint):
        trace(program)


def test_another_number_of_classes_and_a_random_teacher_are_named():
    other = Distillation(teacher=Frozen(MLP((), 4), name="teacher"))
    with pytest.raises(UserError, match=r"task\.teacher has random weights"):
        jdl.train(experiment(MLP((), 2), other, 1))
    program = dataclasses.replace(PROGRAM, task=other)
    with pytest.raises(UserError, match=r"the teacher's outputs have shape \(8, 4\)"):
        trace(program)
