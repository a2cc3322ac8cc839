"""`jdl.fit`: a Flax module and two arrays."""

import gc
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

import jdl
from jdl import UserError
from jdl.hooks import Checkpoint
from jdl.optimizers import SGD, Adam
from jdl.tasks import Classification, Regression

GENERATOR = np.random.default_rng(0)


class Network(nn.Module):
    """Knows nothing of jdl."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(8)(x)))


def rings(count=90):
    """Three classes by distance from the origin, which no linear model tells apart."""
    label = np.arange(count) % 3
    angle = GENERATOR.uniform(0, 2 * np.pi, count)
    radius = 1.0 + 1.5 * label + GENERATOR.normal(scale=0.1, size=count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), label


@pytest.fixture(scope="module")
def classified():
    x, y = rings()
    return x, y, jdl.fit(Network(3), x, y, epochs=40, optimizer=Adam(0.05), hooks=())


def test_integers_are_classified(classified):
    run = classified[2]
    assert run.experiment.task == Classification()
    assert run.steps == 113  # 40 epochs of 90 examples in batches of 32, rounded up
    scores = run.evaluate("train")
    assert set(scores) == {"loss", "nll", "accuracy"}
    assert scores["accuracy"] > 0.9  # a third is guessed right
    assert scores["loss"] < 0.5 * np.log(3)
    assert run.result["metrics"] == {"train": scores}


def test_a_prediction_is_a_distribution_over_classes(classified):
    x, y, run = classified
    chances = run.predict(x)
    assert isinstance(chances, np.ndarray)
    assert (chances.shape, chances.dtype) == ((90, 3), np.float32)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-6)
    scores = run.evaluate("train")
    assert (chances.argmax(1) == y).mean() == pytest.approx(scores["accuracy"])
    assert -np.log(chances[np.arange(90), y]).mean() == pytest.approx(scores["loss"], rel=1e-5)
    logits: Any = Network(3).apply({"params": run.state.params}, x.astype(np.float32))
    np.testing.assert_allclose(chances, jax.nn.softmax(logits), atol=1e-6)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 90])
def test_a_prediction_does_not_depend_on_its_neighbors(classified, count):
    x, _, run = classified
    few = run.predict(x[:count])
    assert few.shape == (count, 3)
    np.testing.assert_allclose(few, run.predict(x)[:count], atol=1e-6)
    np.testing.assert_array_equal(run.predict({"image": x[:count]}), few)
    np.testing.assert_array_equal(run.predict(x[:count].tolist()), few)


def test_there_must_be_something_to_predict(classified):
    with pytest.raises(UserError, match="nothing to predict"):
        classified[2].predict(np.zeros((0, 2)))


def test_splits_that_are_not_there(classified):
    with pytest.raises(UserError, match=r"no split 'test' \(there are train\)"):
        classified[2].evaluate()


def test_floats_are_regressed_as_the_least_squares_solution():
    x = GENERATOR.normal(size=(60, 3))
    y = x @ [1.5, -2.0, 0.25] + 0.75 + GENERATOR.normal(scale=0.3, size=60)
    run = jdl.fit(nn.Dense(1), x, y, epochs=120, batch_size=60, optimizer=SGD(0.3), hooks=())
    assert run.experiment.task == Regression()
    assert run.steps == 120
    expected = LinearRegression().fit(x, y)
    params = run.state.params
    np.testing.assert_allclose(params["kernel"][:, 0], expected.coef_, atol=1e-4)
    np.testing.assert_allclose(params["bias"], [expected.intercept_], atol=1e-4)

    predicted = run.predict(x)
    assert (predicted.shape, predicted.dtype) == ((60, 1), np.float32)
    np.testing.assert_allclose(predicted[:, 0], expected.predict(x), atol=1e-3)
    error = expected.predict(x) - y
    scores = run.evaluate("train")
    assert scores == pytest.approx(
        {
            "loss": np.square(error).mean(),
            "rmse": np.sqrt(np.square(error).mean()),
            "mae": np.abs(error).mean(),
        },
        rel=1e-3,
    )
    assert scores["rmse"] < 0.2 * y.std()  # the best constant's


def test_several_targets_per_example():
    x = GENERATOR.normal(size=(16, 3))
    y = np.stack([x[:, 0], -x[:, 1]], 1)
    run = jdl.fit(nn.Dense(2), x, y, epochs=60, batch_size=16, optimizer=SGD(0.3), hooks=())
    np.testing.assert_allclose(run.predict(x), y, atol=0.01)


@pytest.mark.parametrize("kind", [np.uint8, list])
def test_whole_numbers_of_every_kind_are_classes(kind):
    x = GENERATOR.normal(size=(8, 3)).astype(np.float16)
    y = [0, 1] * 4 if kind is list else np.array([0, 1] * 4, kind)
    run = jdl.fit(nn.Dense(2), x, y, epochs=1, batch_size=8, hooks=())
    assert isinstance(run.experiment.task, Classification)
    assert run.steps == 1


def test_the_task_may_be_given():
    x = np.eye(4)
    run = jdl.fit(
        nn.Dense(1), x, np.arange(4), epochs=80, task=Regression(), optimizer=SGD(0.5), hooks=(),
        batch_size=4,
    )  # fmt: skip
    np.testing.assert_allclose(run.predict(x)[:, 0], np.arange(4), atol=0.05)


def test_without_a_directory_nothing_stays_behind():
    x = GENERATOR.normal(size=(16, 2))
    run = jdl.fit(nn.Dense(1), x, x[:, 0], epochs=1, batch_size=16, hooks=(Checkpoint(),))
    workdir = run.workdir
    assert (workdir / "result.json").exists()
    assert list((workdir / "checkpoints").iterdir())
    del run
    gc.collect()
    assert not workdir.exists()


def test_a_failed_fit_leaves_nothing_behind_either(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="x has 4 examples, y 5"):
        jdl.fit(nn.Dense(2), np.zeros((4, 2)), np.zeros(5, int))
    with pytest.raises(UserError, match="label 2 at row 3 is outside"):
        jdl.fit(nn.Dense(2), np.zeros((4, 2)), np.array([0, 1, 1, 2]))
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_keeps_the_run(tmp_path):
    x = GENERATOR.normal(size=(16, 2))
    settings = {"epochs": 2, "batch_size": 16, "hooks": ()}
    run = jdl.fit(nn.Dense(1), x, x[:, 0], workdir=tmp_path / "run", **settings)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result == run.result
    again = jdl.open(tmp_path / "run", run.experiment)
    np.testing.assert_array_equal(again.predict(x), run.predict(x))
    with pytest.raises(UserError, match=r"data\.arrays\.train\.image"):
        jdl.fit(nn.Dense(1), x + 1, x[:, 0], workdir=tmp_path / "run", **settings)
