"""Early stopping by scores or skipped steps, and the checkpoints kept."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate
from jdl.hooks.rows import Rows
from jdl.metrics import Mean
from jdl.tasks import Classification
from jdl.typing import Event
from tests import kill_resume
from tests.runs import Scored, make_experiment, read_rows


@dataclass(frozen=True, kw_only=True)
class Faulty(Classification):
    """Classification whose loss is NaN at some steps."""

    steps: tuple[int, ...]

    def loss(self, model, params, state, batch, key):
        total, weight, collections, metrics = super().loss(model, params, state, batch, key)
        bad = jnp.isin(state.step + 1, jnp.asarray(self.steps, jnp.int32))
        return jnp.where(bad, jnp.nan, 1) * total, weight, collections, metrics


class FakeRun:
    """What a callback asks of its run, without a run."""

    steps, steps_per_epoch, splits = 1000, 10, ("train", "validation")
    workdir, traces, steps_submitted = Path("nowhere"), {}, 0

    def __init__(self, hook):
        self.saves = self.stops = 0
        self.rows = []
        self.experiment = make_experiment(Evaluate(), hook, task=Scored())

    def save(self, background=None):
        self.saves += 1

    def stop(self, reason):
        self.stops += 1

    def evaluate(self, split, state=None):
        raise AssertionError

    def log(self, row):
        self.rows.append(row)

    def predict(self, x, key=None, *, state=None):
        raise NotImplementedError

    def sample(self, count=16, key=None, *, split=None, state=None):
        raise NotImplementedError

    def print(self, text):
        pass

    def higher_is_better(self, metric):
        return self.experiment.task.higher_is_better(metric)


def drive(hook, scores, resume_at=(), name="score"):
    """Gives a callback scores as evaluations do; returns it, the steps saved, and when it stopped.

    At some steps it is made anew from its state, as in a resumed run.
    """
    run = FakeRun(hook)
    callback, saved, stopped = hook.build(run), [], None
    for step, value in enumerate(scores, 1):
        run.saves = 0
        callback.row({"step": step, "split": "validation", "metrics": {"loss": 1, name: value}})
        timing = {"seconds": 0.0}
        callback(Event(step=step, epoch=0.0, metrics={}, gather=object, timing=timing))
        saved += [step] if run.saves else []
        if run.stops:
            stopped = step
            break
        if step in resume_at:
            state = json.loads(json.dumps(callback.state()))
            callback = hook.build(run)
            callback.restore(state)
    return callback, saved, stopped


def early_stopping(scores, mode, patience, min_delta):
    """When to stop and what was best, from the definition: (step or None, best step)."""
    sign = 1 if mode == "max" else -1
    best, best_step = -math.inf, None
    for step, value in enumerate(scores, 1):
        if sign * value > best + min_delta:
            best, best_step = sign * value, step
        if step - (best_step or 0) >= patience:
            return step, best_step
    return None, best_step


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (2, 1.5)])
def test_early_stopping_counts_evaluations_without_improvement(mode, patience, min_delta):
    hook = EarlyStopping(
        metric="validation.score", mode=mode, patience=patience, min_delta=min_delta
    )
    random, stops = np.random.default_rng(0), set()
    for _ in range(100):
        scores = random.integers(0, 6, 8).astype(float).tolist()
        expected = early_stopping(scores, mode, patience, min_delta)
        for resume_at in ((), random.integers(1, 9, 3).tolist()):
            callback, saved, stopped = drive(hook, scores, resume_at)
            assert (stopped, callback.best_step) == expected, scores
            assert saved[-1] == expected[1], "the weights to go back to are saved"
        stops.add(stopped)
    assert len(stops) > 2


def test_early_stopping_goes_back_to_the_best_weights(tmp_path):
    scores = (9.0, 9.0, 5.0, 5.0, 3.0, 3.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0)  # by step
    hooks = (Evaluate(every=2), EarlyStopping(metric="validation.score", patience=2))
    task = Scored(scores=scores)
    run = jdl.train(make_experiment(*hooks, task=task, steps=12), tmp_path / "run")
    rows = read_rows(tmp_path / "run", "validation")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert run.result["step"] == 8
    assert run.result["metrics"]["validation"] == rows[1]["metrics"]
    assert int(run.state.step) == 4
    again = jdl.train(make_experiment(*hooks, task=task, steps=12), tmp_path / "run")
    assert again.evaluate("validation") == rows[1]["metrics"]
    assert 4 in kill_resume.checkpoints(tmp_path / "run")


def test_a_score_that_does_not_exist_is_named(tmp_path):
    for metric, message in [
        ("validation", "SPLIT.NAME"),
        ("test.loss", "test.loss is never scored"),
        ("validation.bleu", "validation has no metric 'bleu' that is a number .*loss"),
    ]:
        hooks = (Evaluate(every=2), EarlyStopping(metric=metric))
        with pytest.raises(UserError, match=message):
            jdl.train(make_experiment(*hooks), tmp_path / metric)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_checkpoints_of_the_last_and_the_best_are_kept(mode):
    hook = Checkpoint(every=2, keep=2, best=3, metric="validation.score", mode=mode)
    random, sign = np.random.default_rng(1), 1 if mode == "min" else -1
    for _ in range(50):
        scores = random.permutation(9).astype(float).tolist()
        callback, saved, _ = drive(hook, scores, random.integers(1, 10, 3).tolist())
        best = sorted(range(1, 10), key=lambda step: sign * scores[step - 1])[:3]
        assert set(callback.protected_steps) == {6, 8, *best}
        assert {2, 4, 6, 8, *best} <= set(saved)


def test_a_score_that_is_no_number_is_never_the_best():
    nan = math.nan
    hook = Checkpoint(every=100, best=1, metric="validation.score")
    for scores in ([nan, 2.0, 1.0, nan], [2.0, nan, 1.0, 3.0], [nan, nan, 1.0, nan]):
        assert drive(hook, scores)[0].protected_steps == [3]
    hook = EarlyStopping(metric="validation.score", patience=9)
    assert drive(hook, [nan, 2.0, 1.0, nan])[0].best_step == 3


@flax.struct.dataclass
class Correlation(Mean):
    """A metric class that defines its direction."""

    higher_is_better = True


@dataclass(frozen=True, kw_only=True)
class Unknown(Classification):
    """Has metrics without a usual name."""

    def evaluate(self, model, state, batch):
        known = super().evaluate(model, state, batch)
        accuracy = known["accuracy"]
        return {**known, "odd": accuracy, "fit": Correlation(accuracy.total, accuracy.count)}


@pytest.mark.parametrize("mode", [None, "min", "max"])
@pytest.mark.parametrize("name", ["accuracy", "loss", "nll", "wer", "cer", "bleu", "rmse", "fid"])
def test_the_direction_is_the_metrics_unless_mode_overrides_it(name, mode):
    scores = [3.0, 5.0, 1.0, 4.0]
    higher = name in ("accuracy", "bleu") if mode is None else mode == "max"
    for hook in (
        EarlyStopping(metric=f"validation.{name}", mode=mode, patience=9),
        Checkpoint(every=9, best=1, metric=f"validation.{name}", mode=mode),
    ):
        callback, _, _ = drive(hook, scores, name=name)
        kept = {callback.best_step, *callback.protected_steps} - {None}
        assert kept == {2 if higher else 3}


def test_a_metric_without_a_direction_needs_a_mode(tmp_path):
    for hook in (EarlyStopping, Checkpoint):
        options = {"best": 1} if hook is Checkpoint else {}
        hooks = (Evaluate(every=2), hook(metric="validation.odd", **options))
        with pytest.raises(UserError, match=r"a higher validation\.odd .* unknown: set mode"):
            jdl.train(make_experiment(*hooks, task=Unknown()), tmp_path / hook.__name__)
    hooks = (
        Evaluate(every=1),
        EarlyStopping(metric="validation.odd", mode="max", patience=99),
        Checkpoint(best=1, metric="validation.fit"),
    )
    run = jdl.train(make_experiment(*hooks, task=Unknown(), steps=6), tmp_path / "run")
    scores = [row["metrics"]["accuracy"] for row in read_rows(tmp_path / "run", "validation")]
    assert run.result["metrics"]["validation"]["accuracy"] == max(scores)
    assert 1 + scores.index(max(scores)) in kill_resume.checkpoints(tmp_path / "run")


def test_other_checkpoints_are_deleted(tmp_path):
    scores = (9.0, 9.0, 5.0, 5.0, 1.0, 1.0, 4.0, 4.0, 2.0, 2.0, 3.0, 3.0, 3.0)  # by step
    checkpoint = Checkpoint(every=3, keep=1, best=2, metric="validation.score")
    experiment = make_experiment(
        Evaluate(every=2), checkpoint, task=Scored(scores=scores), steps=11
    )
    jdl.train(experiment, tmp_path / "run")
    saved = kill_resume.checkpoints(tmp_path / "run")
    assert saved == [4, 8, 9, 11], "two best, one regular, and the end"


def test_a_skipped_step_is_logged_with_the_positions_of_its_batch(tmp_path):
    task = Faulty(steps=(2, 4, 5))
    run = jdl.train(
        make_experiment(task=task, stop_after_skipped=3, runtime=jdl.Runtime(log_every=3)),
        tmp_path / "run",
    )
    rows = read_rows(tmp_path / "run", "skipped")
    assert [(row["step"], row["metrics"]) for row in rows] == [
        (step, {"first_position": 8 * (step - 1), "last_position": 8 * step - 1})
        for step in (2, 4, 5)
    ]
    train = [row["metrics"] for row in read_rows(tmp_path / "run", "train")]
    assert [metrics["skipped"] for metrics in train] == pytest.approx([1 / 3, 2 / 3])
    assert all(math.isfinite(metrics["loss"]) for metrics in train)
    assert run.result["step"] == 6
    assert all(math.isfinite(m["loss"]) for m in run.result["metrics"].values())


@dataclass(frozen=True, kw_only=True)
class Undefined(Classification):
    """Classification with a metric that is NaN at some steps and 1 at all others."""

    steps: tuple[int, ...]

    def loss(self, model, params, state, batch, key):
        total, weight, collections, metrics = super().loss(model, params, state, batch, key)
        bad = jnp.isin(state.step + 1, jnp.asarray(self.steps, jnp.int32))
        odd = Mean(jnp.where(bad, jnp.nan, 1.0), jnp.ones(()))
        return total, weight, collections, {**metrics, "odd": odd}


def test_a_metric_that_is_not_finite_is_missing_in_the_rows_and_training_goes_on(tmp_path, capsys):
    options = {"stop_after_skipped": 1, "runtime": jdl.Runtime(log_every=3), "steps": 12}
    task = Undefined(steps=(2, 4, 5, 6, 12))
    run = jdl.train(make_experiment(Checkpoint(every=1), task=task, **options), tmp_path / "run")
    rows = read_rows(tmp_path / "run", "train")
    assert [row["metrics"]["odd"] for row in rows] == [1, None, 1, 1]
    assert not read_rows(tmp_path / "run", "skipped")
    out = capsys.readouterr().out
    assert out.count("the metric odd is not finite at step 2: such steps are left out") == 1
    assert "is not finite at step 4" not in out
    plain = jdl.train(make_experiment(**options), tmp_path / "plain")
    assert run.result["params_sha256"] == plain.result["params_sha256"]


def test_what_was_missing_survives_a_checkpoint():
    callback, other = Rows(FakeRun(Checkpoint())), Rows(FakeRun(Checkpoint()))
    metrics = {"odd": Mean(math.nan, 1.0), "skipped": Mean(0.0, 1.0)}
    event = Event(step=1, epoch=0.1, metrics=metrics, timing={"training_seconds": 1.0})
    callback(event)
    other.restore(json.loads(json.dumps(callback.state(), allow_nan=False)))
    for each in (callback, other):
        each(dataclasses.replace(event, step=each._run.experiment.runtime.log_every))
        assert math.isnan(each._run.rows[-1]["metrics"]["odd"])


def test_many_skipped_steps_in_a_row_end_the_run_with_one_sentence(tmp_path):
    task = Faulty(steps=tuple(range(3, 20)))
    experiment = make_experiment(
        Checkpoint(every=1, keep=1), task=task, stop_after_skipped=4, steps=20
    )
    for _ in range(2):  # the second time it resumes from step 5 and still counts from step 3
        with pytest.raises(UserError) as ended:
            jdl.train(experiment, tmp_path / "run")
        assert "not finite for 4 steps in a row, up to step 6: the run stops" in str(ended.value)
        assert "\n" not in str(ended.value)
        assert kill_resume.checkpoints(tmp_path / "run") == [5]
        assert [row["step"] for row in read_rows(tmp_path / "run", "skipped")] == [3, 4, 5, 6]
    assert not (tmp_path / "run" / "result.json").exists()
