"""Calibrations find what was done to the logits; conformal sets cover; a run keeps both."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.audit.calibrate import apply, calibrate, evaluate_calibration, evaluate_sets, fit
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.hooks import EarlyStopping, Evaluate
from jdl.metrics import CalibrationError
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.tasks import BinaryClassification
from jdl.tasks.calibration import ConformalSets, fit_conformal


def drawn(rows, classes, seed=0, scale=2.0):
    """Labels, and logits whose softmax is the probability of each."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(rows, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return labels, logits


def softmax(logits):
    return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


@pytest.mark.parametrize("single", [False, True])
def test_temperature_and_vector_scaling_undo_what_was_done(single):
    labels, logits = drawn(20_000, 2 if single else 4, scale=0.7 if single else 2.0)
    p = softmax(3 * logits)
    found = fit(labels, p, "temperature", single)
    assert found.temperature == pytest.approx(3, rel=0.05)
    right = apply(found, p, single)
    np.testing.assert_allclose(right, softmax(3 * logits / found.temperature), atol=1e-4)
    assert evaluate_calibration(labels, right)["ece"] < 0.015
    assert evaluate_calibration(labels, p)["ece"] > 0.05

    shift = np.arange(logits.shape[1])
    shifted = softmax(logits + shift)
    found = fit(labels, shifted, "vector", single)
    np.testing.assert_allclose(found.weights, 1, atol=0.06)
    biases = np.array([0, *found.biases]) if single else np.array(found.biases)
    np.testing.assert_allclose(biases - biases[0], -shift, atol=0.12)
    better, worse = apply(found, shifted, single), shifted
    truth = evaluate_calibration(labels, softmax(logits))
    assert evaluate_calibration(labels, better)["nll"] <= truth["nll"] + 1e-6  # the best of train
    assert evaluate_calibration(labels, worse)["nll"] > truth["nll"] + 0.1


@pytest.mark.parametrize("single", [False, True])
def test_isotonic_calibration_is_scikit_learns(single):
    from sklearn.isotonic import IsotonicRegression

    labels, logits = drawn(3000, 2 if single else 3)
    p = softmax(2 * logits)
    exact = p.astype(np.float64)
    found = fit(labels, p, "isotonic", single)
    columns = [
        IsotonicRegression(out_of_bounds="clip").fit_transform(exact[:, k], labels == k)
        for k in ([1] if single else range(3))
    ]
    known = np.clip(np.stack(columns, 1), 1e-6, 1 - 1e-6)
    known = np.concatenate([1 - known, known], 1) if single else known / known.sum(1)[:, None]
    # Where the function is steep, rounding of its argument shows.
    assert np.abs(apply(found, p, single) - known).mean() < 1e-4
    errors = [evaluate_calibration(labels, x)["ece"] for x in (p, apply(found, p, single))]
    assert errors[1] < 0.5 * errors[0]


def test_the_error_is_that_of_the_metric():
    labels, logits = drawn(500, 4)
    p = softmax(3 * logits)
    metric = CalibrationError()
    sums = jax.jit(metric.statistics)(p, labels, np.ones(500, bool))
    value = metric.compute({name: np.asarray(x, np.float64) for name, x in sums.items()})
    assert evaluate_calibration(labels, p)["ece"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("per_class", [False, True])
def test_sets_cover(per_class):
    labels, logits = drawn(40_000, 3)
    p = softmax(logits + np.array([0, 0, 2]))  # poor in class 0 and 1
    conformal = fit_conformal(labels[:20_000], p[:20_000], 0.9, per_class)
    assert len(conformal.thresholds) == (3 if per_class else 1)
    groups = {"first": np.arange(20_000) < 10_000}
    found = evaluate_sets(labels[20_000:], conformal(p[20_000:]), ("a", "b", "c"), groups)
    assert found["coverage"] == pytest.approx(0.9, abs=0.01)
    assert found["coverage_by_group"]["first"] == pytest.approx(0.9, abs=0.015)
    worst = found["coverage_by_class"][found["worst_class"]]
    assert (worst > 0.88) == per_class
    assert found["mean_size"] == pytest.approx(conformal(p[20_000:]).sum(1).mean())


def test_a_coverage_holds_for_few_examples():
    rng, covered = np.random.default_rng(0), []
    for _ in range(2000):
        p = rng.random((20, 1)).astype(np.float32)
        sets = fit_conformal(np.zeros(19, int), p[:19], 0.8, False)(p[19:])
        covered.append(sets[0, 0])
    assert np.mean(covered) == pytest.approx(0.8, abs=0.03)
    with pytest.raises(UserError, match=r"needs at least 9 examples of class 0 .* there are 5"):
        fit_conformal(np.zeros(5, int), np.ones((5, 1)), 0.9, True)
    with pytest.raises(UserError, match="between 0 and 1, not 1"):
        fit_conformal(np.zeros(5, int), np.ones((5, 1)), 1.0, True)


def test_a_set_is_named():
    sets = ConformalSets(coverage=0.9, thresholds=(0.2, 0.5))
    assert sets.to_json(np.float32([0.3, 0.7]), ("no", "yes")) == ["no", "yes"]
    assert sets.to_json(np.float32([0.6, 0.4]), ()) == [0]


class Sure(nn.Module):
    """A linear classifier of one logit that is too confident."""

    @nn.compact
    def __call__(self, x):
        return 8 * nn.Dense(1, name="logits")(x)


def experiment(**changes):
    labels, logits = drawn(600, 2)
    x = (logits[:, 1:] - logits[:, :1]).astype(np.float32)
    settings = {
        "model": Sure(),
        "task": BinaryClassification(),
        "data": Arrays({"train": {"image": x, "label": labels}}, calibration_fraction=0.3),
        "optimizer": SGD(0.02),
        "strategy": Single(),
        "hooks": (),
        "steps": 30,
        "batch_size": 32,
    }
    return jdl.Experiment(**settings | changes)


def test_a_run_with_one_logit_is_opened_calibrated(tmp_path):
    given = experiment()
    run = jdl.train(given, tmp_path / "run")
    assert "calibration" not in run.result["metrics"]
    raw = run.evaluate("test")
    x = run.data.pipeline("test").examples(np.arange(5))["image"]
    before = run.predict(x)
    found = calibrate(tmp_path / "run", given, method="vector")
    assert found["examples"] == 144
    opened = jdl.open(tmp_path / "run", given)
    task = opened.experiment.task
    expected = apply(task.calibration, np.stack([1 - before, before], 1), True)[:, 1]
    after = opened.predict(x)
    assert abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, expected, atol=1e-5)
    scores = opened.evaluate("test")
    assert scores["nll"] == pytest.approx(found["test"]["after"]["nll"], abs=1e-4)
    assert raw["nll"] == pytest.approx(found["test"]["before"]["nll"], abs=1e-4)
    assert set(task.format_prediction(after[0], ("a", "b"))["prediction_set"]) <= {"a", "b"}
    # Fitted anew it is fitted to the model's own outputs.
    again = calibrate(tmp_path / "run", given, method="vector")
    assert again["calibration"] == found["calibration"]
    jdl.train(experiment(steps=31), tmp_path / "run")  # which makes it stale
    assert not (tmp_path / "run/calibration.json").exists()


def test_a_command_calibrates_a_run(run, command, tmp_path):
    (tmp_path / "new.csv").write_text("x\n1\n-1\n")
    before = command("predict", run, "new.csv")[1]
    code, out, _ = command("calibrate", run, "--coverage", 0.8)
    assert code == 0
    found = json.loads(out)
    assert (found["split"], found["examples"]) == ("calibration", 96)
    assert found["test"]["sets"]["coverage"] > 0.6
    evaluated = json.loads(command("evaluate", run)[1])
    assert evaluated["nll"] == pytest.approx(found["test"]["after"]["nll"], abs=1e-4)
    assert evaluated["accuracy"] == pytest.approx(found["test"]["after"]["accuracy"], abs=1e-6)
    after = command("predict", run, "new.csv")[1]
    assert after != before
    assert set(json.loads(after.splitlines()[0])["prediction_set"]) <= {"no", "yes"}


def test_a_split_that_is_missing_or_was_used_is_refused(planted):
    for split, message in (
        ("calibration", "has no split 'calibration' .*data.calibration_fraction=0.1"),
        ("train", "the model was trained on"),
        ("test", "the result is measured on"),
    ):
        with pytest.raises(UserError, match=message):
            calibrate(planted.workdir, planted.experiment, split=split)


def test_what_stopped_the_training_is_refused(tmp_path):
    stopped = experiment(hooks=(Evaluate(), EarlyStopping()))
    with pytest.raises(UserError, match=r"validation split has stopped the training \(hooks\.1\)"):
        calibrate(tmp_path, stopped, split="validation")
