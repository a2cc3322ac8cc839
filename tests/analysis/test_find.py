"""Learning-rate range tests against a closed form; the batch size search and its limits."""

import dataclasses
import importlib.util
import os
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

import jdl
from jdl.analysis import find
from jdl.analysis.find import BatchRow, BatchSearch, find_batch, find_lr, steepest
from jdl.config.overrides import flatten
from jdl.data import Arrays
from jdl.errors import UserError, install_command
from jdl.hooks import Hook
from jdl.optimizers import SGD, Cosine
from jdl.parallel import DataParallel, Single
from jdl.tasks import Regression
from jdl.trainer.training_run import TrainingRun
from tests.runs import make_experiment

X = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)
CURVATURE = float(np.mean(X.astype(float) ** 2))


class Slope(nn.Module):
    start: float = 0.0

    @nn.compact
    def __call__(self, x):
        kernel = nn.initializers.constant(self.start)
        return nn.Dense(1, use_bias=False, kernel_init=kernel)(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusing(Hook):
    """A hook that must not run."""

    def build(self, run):
        raise AssertionError("a hook was built")


def parabola(**changes):
    """y = 3x by least squares, every batch the whole split: loss = curvature * error**2."""
    settings = {
        "model": Slope(),
        "task": Regression(inputs="x", targets="y"),
        "data": Arrays(
            {"train": {"x": X, "y": 3 * X[:, 0]}}, test_fraction=0.0, validation_fraction=0.0
        ),
        "optimizer": SGD(0.5, schedule=Cosine(warmup=0.2)),
        "strategy": Single(),
        "hooks": (Refusing(),),
        "epochs": 1,
        "batch_size": 64,
        **changes,
    }
    return jdl.Experiment(**settings)


def test_the_losses_are_those_of_gradient_descent_at_rising_rates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = parabola()
    before = flatten(experiment)
    curve = find_lr(experiment, low=1e-4, high=100.0, steps=50)
    count = len(curve.rates)
    assert 20 < count < 50  # it diverges from a rate of 1 / curvature on
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-4, 100, 50)[:count], rtol=1e-4)
    error, expected = 3.0, []
    for rate in curve.rates:
        expected.append(CURVATURE * error**2)
        error *= 1 - 2 * CURVATURE * rate
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-3, atol=1e-6)
    weights = 0.8 ** np.arange(count)  # exponential, over a tenth of 50 steps
    for step in range(count):
        average = np.average(curve.losses[: step + 1], weights=weights[: step + 1][::-1])
        assert curve.smoothed[step] == pytest.approx(average, rel=1e-6)
    best = np.minimum.accumulate(curve.smoothed)
    assert (curve.smoothed[:-1] <= 4 * best[:-1]).all()
    assert curve.smoothed[-1] > 4 * best[-1]
    assert curve.suggestion is not None
    assert 0.01 < curve.suggestion < 1 / CURVATURE
    assert list(tmp_path.iterdir()) == []
    assert flatten(experiment) == before


def test_the_suggestion_is_the_steepest_fall():
    rates = np.geomspace(1e-5, 1, 101)
    at = np.log10(rates)
    sigmoid = 1 / (1 + np.exp(8 * (at + 2)))  # falls steepest at 1e-2
    assert steepest(rates, sigmoid, 10) == pytest.approx(1e-2)
    noisy = sigmoid + np.random.default_rng(0).normal(0, 0.05, 101)
    assert steepest(rates, noisy, 10) == pytest.approx(1e-2, rel=1)
    assert steepest(rates, at, 10) is None
    assert steepest(rates[:20], sigmoid[:20], 10) is None
    around = [np.polyfit(np.arange(7), noisy[i : i + 7], 1)[0] for i in range(95)]
    assert steepest(rates, noisy, 3) == rates[3 + np.argmin(around)]


def test_a_loss_that_is_not_finite_ends_the_test():
    curve = find_lr(parabola(), low=1e25, high=1e30, steps=10)
    assert 1 <= len(curve.losses) < 10
    assert np.isfinite(curve.losses).all()
    with pytest.raises(UserError, match="the first step gives no finite loss"):
        find_lr(parabola(model=Slope(start=float("inf"))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "from above 0, not from 0 to 10"),
        ({"low": 1.0, "high": 0.1}, "not from 1 to 0.1"),
        ({"high": float("inf")}, "not from 1e-07 to inf"),
        ({"steps": 9}, "at least 10 steps, not 9"),
    ],
)
def test_impossible_ranges_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        find_lr(parabola(), **options)


def test_find_lr_from_the_command_line(command, clouds, tmp_path, monkeypatch):
    words = ["find-lr", clouds, "--steps", "30", "--high=1e3", "--optimizer", "sgd"]
    code, out, err = command(*words, "--png", "curve.png")
    assert (code, err) == (0, "")
    header, *rows, suggestion = out.splitlines()
    assert header.split() == ["learning", "rate", "loss,", "averaged"]
    assert rows[0].startswith("      1.0e-07  ")
    assert re.fullmatch(r"--optimizer\.learning-rate \d\.\de[-+]\d+", suggestion)
    assert 1e-6 < float(suggestion.split()[1]) < 100
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert command(*words)[1] == out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = command(*words, "--png", "other.png")
    assert (code, out) == (2, "")
    assert install_command("report") in err


@pytest.fixture
def quick(monkeypatch):
    """Times one step a block."""
    monkeypatch.setattr(find, "BLOCK_SECONDS", 1e-9)


@pytest.mark.usefixtures("quick")
def test_batches_double_until_the_split_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    search = find_batch(make_experiment(Refusing()), report=seen.append)
    assert [row.batch_size for row in search.rows] == [1, 2, 4, 8, 16, 32]
    assert search.ended == "the training split has 40 examples"
    assert tuple(seen) == search.rows
    for row in search.rows:
        assert row.items_per_second == pytest.approx(row.batch_size / row.seconds)
        assert row.memory > 1 << 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_the_smallest_batch_is_what_devices_and_micro_batches_can_share(monkeypatch):
    counts = []
    update = TrainingRun.update

    def spy(self, step_inputs):
        counts.append((self.experiment.batch_size, len(step_inputs)))
        return update(self, step_inputs)

    monkeypatch.setattr(TrainingRun, "update", spy)
    experiment = make_experiment(num_microbatches=3, strategy=DataParallel(), batch_size=12)
    search = find_batch(
        dataclasses.replace(experiment, runtime=jdl.Runtime(steps_per_execution=2)), largest=12
    )
    assert [row.batch_size for row in search.rows] == [6, 12]
    assert search.ended == "the largest batch size to try is 12"
    assert set(counts) == {(6, 2), (12, 2)}
    with pytest.raises(UserError, match=r"no batch size to try: the largest .* is 5"):
        find_batch(experiment, largest=5)


@pytest.mark.usefixtures("quick")
def test_memory_that_runs_out_is_said_and_a_size_is_still_suggested(monkeypatch):
    update, message = TrainingRun.update, "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."

    def failing(self, step_inputs):
        if self.experiment.batch_size >= 8:
            raise jax.errors.JaxRuntimeError(message)
        return update(self, step_inputs)

    monkeypatch.setattr(TrainingRun, "update", failing)
    search = find_batch(make_experiment())
    assert [row.batch_size for row in search.rows] == [1, 2, 4]
    assert search.ended == "memory runs out at a batch size of 8"
    assert search.suggestion in (1, 2, 4)
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        find_batch(make_experiment())


@pytest.mark.usefixtures("quick")
def test_a_host_is_not_asked_for_more_than_it_has(monkeypatch):
    held = iter([100 << 20, 130 << 20, 190 << 20])
    monkeypatch.setattr(find, "peak_bytes", lambda devices: next(held))
    monkeypatch.setattr(find, "available_memory", lambda: 119 << 20)
    search = find_batch(make_experiment())
    # From 2 to 4 examples it took 60 MiB more: from 4 to 8 it takes 120.
    assert [row.batch_size for row in search.rows] == [1, 2, 4]
    assert search.ended == "a batch size of 8 would need 120 MiB more, and 119 MiB are available"


def test_what_memory_is_left_is_part_of_all_there_is():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < find.available_memory() < whole


def test_the_suggestion_is_the_smallest_that_is_nearly_the_fastest():
    speeds = {1: 10.0, 2: 94.0, 4: 95.0, 8: 100.0, 16: 99.0}
    rows = tuple(BatchRow(size, speed, size / speed, 0) for size, speed in speeds.items())
    assert BatchSearch(rows, "").suggestion == 4


@pytest.mark.usefixtures("quick")
def test_find_batch_from_the_command_line(command, clouds, tmp_path):
    code, out, err = command("find-batch", clouds, "--largest", "8", "--model.widths", "3")
    assert (code, err) == (0, "")
    *rows, ended, suggestion = out.splitlines()
    assert [row.split(":")[0] for row in rows] == [f"batch size {n}" for n in (2, 4, 8)]
    assert ended == "the largest batch size to try is 8"
    assert re.fullmatch(r"--batch-size [248]", suggestion)
    assert list(tmp_path.iterdir()) == []
