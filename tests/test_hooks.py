"""What happens between steps: rows, scores, checkpoints, stopping, showing, profiling."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import math
import os
import pty
import re
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Data, Source
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.hooks import (
    Checkpoint,
    EarlyStopping,
    Evaluate,
    Hook,
    Listener,
    Profile,
    Progress,
    RetraceWarning,
    TensorBoard,
    WandB,
)
from jdl.metrics import Mean
from jdl.optimizers import SGD
from jdl.parallel import Single, Steps
from jdl.run import Run
from jdl.tasks import Classification
from jdl.typing import Event

CALLS: list[Any] = []
"""What was done, in order."""


@dataclass(frozen=True)
class Spied(Single):
    """One device; notes each step that is dispatched and marks it in profiles."""

    def compile(self, program, resident, feed) -> Steps:
        steps, count = super().compile(program, resident, feed), iter(range(1, 1000))

        def update(state, feed):
            step = next(count)
            CALLS.append(("dispatch", step))
            with jax.profiler.TraceAnnotation(f"step-{step}"):
                return steps.update(state, feed)

        return dataclasses.replace(steps, update=update)


@dataclass(frozen=True, kw_only=True)
class Watch(Hook):
    """Notes what hooks are told."""

    def build(self, run):
        return _Watch()


class _Watch(Listener):
    def __call__(self, event):
        CALLS.append(("event", event.step, event))
        CALLS.append(("profiler of threads", event.step, threading.getprofile()))

    def close(self):
        CALLS.append(("close",))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x)


@dataclass(frozen=True, kw_only=True)
class Scripted(Classification):
    """Classification with a score that is a given number at each step, and NaN losses at some."""

    scores: tuple[float, ...] = ()
    bad: tuple[int, ...] = ()

    def evaluate(self, model, state, batch):
        known = super().evaluate(model, state, batch)
        if not self.scores:
            return known
        score = jnp.asarray(self.scores, jnp.float32)[state.step]
        return {**known, "score": Mean.of(score + jnp.zeros(len(batch["mask"])), batch["mask"])}

    def loss(self, model, params, state, batch, key):
        total, weight, collections, metrics = super().loss(model, params, state, batch, key)
        bad = jnp.isin(state.step + 1, jnp.asarray(self.bad, jnp.int32))
        return jnp.where(bad, jnp.nan, 1) * total, weight, collections, metrics


def make_split(size, seed):
    x = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
    return {"image": x, "label": np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5]).astype(np.int32)}


ARRAYS = {"train": make_split(40, 0), "validation": make_split(13, 1), "test": make_split(11, 2)}


def make_experiment(*hooks, **changes):
    settings: dict[str, Any] = {
        "model": Linear(),
        "task": Scripted(),
        "data": Arrays(ARRAYS),
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": hooks,
        "steps": 6,
        "batch_size": 8,
        **changes,
    }
    return jdl.Experiment(**settings)


def read_rows(workdir, split=None):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if split in (None, row["split"])]


def saved_steps(workdir):
    found = (workdir / "checkpoints").glob("*/manifest.json")
    return sorted(int(path.parent.name.split(".")[0]) for path in found)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """18 steps with every hook that shows something; what was called and what was said."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    hooks = (
        Progress(),
        TensorBoard(),
        Evaluate(every=4),
        Checkpoint(every=4, keep=100),
        RetraceWarning(),
        Profile(start=6, steps=2),
        Watch(),
    )
    experiment = make_experiment(*hooks, steps=18, log_every=5, strategy=Spied())
    said, pipeline, evaluate = io.StringIO(), Splits.pipeline, Run.evaluate

    def spied_pipeline(self, name):
        CALLS.append(("open", name))
        return pipeline(self, name)

    def spied_evaluate(self, split="test", state=None):
        CALLS.append(("evaluate", split))
        return evaluate(self, split, state)

    CALLS.clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(Splits, "pipeline", spied_pipeline)
        patch.setattr(Run, "evaluate", spied_evaluate)
        run = jdl.train(experiment, workdir)
    return run, workdir, list(CALLS), said.getvalue()


def score(run, workdir, step, split):
    """Loss and accuracy of the weights of a step, in float64 and without any of our own code."""
    like = run.compiled.like
    from jdl.checkpoint import Store

    with contextlib.closing(Store(workdir / "checkpoints")) as store:
        params = store.restore(step, like)[0].params["Dense_0"]
    x, labels = ARRAYS[split]["image"], ARRAYS[split]["label"]
    logits = x.astype(np.float64) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    right = logits.argmax(1) == labels
    return {"loss": -logits[np.arange(len(x)), labels].mean(), "accuracy": right.mean()}


def test_evaluations_come_at_their_steps_and_count_every_example_once(watched):
    run, workdir, _, _ = watched
    rows = read_rows(workdir, "validation")
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 18]
    for row in rows:
        assert row["metrics"] == pytest.approx(score(run, workdir, row["step"], "validation"))
        assert row["epoch"] == pytest.approx(row["step"] * 8 / 40)
    assert rows[-1]["metrics"] == run.result["metrics"]["validation"] == run.evaluate("validation")
    for split in ("train", "test"):
        assert run.result["metrics"][split] == pytest.approx(score(run, workdir, 18, split))


def test_training_rows_are_means_over_the_steps_since_the_last(watched):
    _, workdir, calls, _ = watched
    events = [call[2] for call in calls if call[0] == "event"]
    assert [event.step for event in events] == list(range(1, 19))
    rows = read_rows(workdir, "train")
    assert [row["step"] for row in rows] == [5, 10, 15, 18]
    for begin, row in zip((0, 5, 10, 15), rows, strict=True):
        for name in ("loss", "accuracy"):
            metrics = [event.metrics[name] for event in events[begin : row["step"]]]
            total, count = sum(m.total for m in metrics), sum(m.count for m in metrics)
            assert count == 8 * len(metrics)
            assert row["metrics"][name] == pytest.approx(total / count)


def test_metrics_are_fetched_one_step_late_and_two_steps_are_in_flight_at_most(watched):
    order = [call[:2] for call in watched[2] if call[0] in ("dispatch", "event")]
    due = {4, 5, 7, 8, 12, 16, 18}  # evaluations, saves, and both ends of the profile
    expected, waiting = [], None
    for step in range(1, 19):
        expected.append(("dispatch", step))
        if waiting:
            expected.append(("event", waiting))
        waiting = None if step in due else step
        if step in due:
            expected.append(("event", step))
    assert order == expected
    leaves = jax.tree.leaves([call[2].metrics for call in watched[2] if call[0] == "event"])
    assert leaves
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves), "they are on the host"


def test_hooks_get_the_state_where_they_are_due_and_are_closed_once(watched):
    given = [call[1] for call in watched[2] if call[0] == "event" and call[2].state is not None]
    assert given == [4, 5, 7, 8, 12, 16, 18]
    assert watched[2].count(("close",)) == 1


def test_the_test_split_is_read_once_and_at_the_end(watched):
    calls = [call[:2] for call in watched[2]]
    assert calls.count(("evaluate", "test")) == 1
    end = max(i for i, call in enumerate(calls) if call[0] in ("dispatch", "event"))
    assert ("open", "test") in calls
    assert calls.index(("open", "test")) > end
    with pytest.raises(UserError, match="may not read the test split"):
        Evaluate(splits=("validation", "test"))


def test_progress_says_loss_rates_time_left_and_compile_time(watched):
    _, workdir, _, said = watched
    pattern = (
        r"step (\d+)/18  train .*loss (\S+).*  (\d+) steps/s (\d+) items/s  "
        r"(\d+) s left \(compiled in (\S+) s\)"
    )
    lines = re.findall(pattern, said)
    rows = read_rows(workdir, "train")
    assert [int(line[0]) for line in lines] == [row["step"] for row in rows] == [5, 10, 15, 18]
    for line, row in zip(lines, rows, strict=True):
        timing = row["timing"]
        rate = timing["steps_per_second"]
        assert float(line[1]) == pytest.approx(row["metrics"]["loss"], abs=1e-4)
        assert [int(line[2]), int(line[3])] == pytest.approx([rate, 8 * rate], abs=0.6)
        assert int(line[4]) == pytest.approx((18 - row["step"]) / rate, abs=0.6)
        assert float(line[5]) == pytest.approx(timing["compile_seconds"], abs=0.06)
        assert 0 < timing["training_seconds"] < timing["seconds"]
    assert len(re.findall(r"step \d+/18  validation .*loss", said)) == 5
    assert "\x1b" not in said, "plain lines where there is no terminal"


def tensorboard(workdir):
    """The scalars of all event files, read from their bytes: TFRecords that hold protobufs."""
    from tensorboardX.proto.event_pb2 import Event as Logged  # pyright: ignore

    found = []
    for path in sorted(workdir.glob("events.out.tfevents*")):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (size,) = struct.unpack_from("<Q", data, position)
            logged = Logged.FromString(data[position + 12 : position + 12 + size])
            position += 12 + size + 4
            found += [(v.tag, logged.step, v.simple_value) for v in logged.summary.value]
    return found


def test_tensorboard_shows_the_same_numbers(watched):
    workdir = watched[1]
    expected = [
        (f"{row['split']}/{name}", row["step"], float(np.float32(value)))
        for row in read_rows(workdir)
        for name, value in row["metrics"].items()
    ]
    assert tensorboard(workdir) == expected


def traced_steps(workdir):
    found = set()
    for path in (workdir / "profile").rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            names = {event.name for line in plane.lines for event in line.events}
            found |= {name for name in names if name.startswith("step-")}
    return found


def test_a_profile_holds_the_chosen_steps(watched, tmp_path):
    assert traced_steps(watched[1]) == {"step-6", "step-7"}
    hooks = (Profile(start=1, steps=2),)
    jdl.train(make_experiment(*hooks, steps=4, strategy=Spied()), tmp_path / "first")
    assert traced_steps(tmp_path / "first") == {"step-1", "step-2"}
    hooks = (Profile(start=3, steps=99),)
    jdl.train(make_experiment(*hooks, steps=4, strategy=Spied()), tmp_path / "last")
    assert traced_steps(tmp_path / "last") == {"step-3", "step-4"}


def test_a_profile_lets_threads_be(watched):
    # Under a profiler of Python code CPython now and then fails to start a thread ("Cannot install
    # a profile function"); Orbax then leaves out what that thread was to write, and says nothing.
    profilers = [call[2] for call in watched[2] if call[0] == "profiler of threads"]
    assert profilers == [None] * 18


def test_progress_draws_in_a_terminal(tmp_path, monkeypatch):
    leader, follower = pty.openpty()
    shown = []

    def read():
        with contextlib.suppress(OSError):
            while data := os.read(leader, 4096):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with os.fdopen(follower, "w") as terminal:
        assert terminal.isatty()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            jdl.train(make_experiment(Progress(), Evaluate(every=3), log_every=2), tmp_path / "r")
    reader.join(10)
    os.close(leader)
    text = b"".join(shown).decode()
    assert "\x1b[" in text
    assert "6/6" in text
    row = read_rows(tmp_path / "r", "train")[-1]
    assert f"loss {row['metrics']['loss']:.4f}" in text


@dataclass(frozen=True)
class Ragged:
    """Examples of 4 numbers, and one of 6."""

    odd: int
    split: Any = dataclasses.field(default_factory=lambda: make_split(40, 0))

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = self.split["image"][index]
        more = image[:2] if index == self.odd else image[:0]
        return {"image": np.concatenate([image, more]), "label": self.split["label"][index]}


@dataclass(frozen=True, kw_only=True)
class RaggedData(Data):
    odd: int

    def load(self) -> dict[str, Source]:
        return {"train": Ragged(self.odd)}

    def describe(self):
        return "ragged"


class Averaging(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.mean(-1, keepdims=True))


def test_a_batch_of_another_shape_is_warned_of_by_its_step(watched, tmp_path, capsys):
    assert "compiled again" not in watched[3]
    order = np.random.default_rng((0, 0)).permutation(40)  # that of the first epoch
    data = RaggedData(
        odd=int(order[3]), pipeline="grain", test_fraction=0.0, validation_fraction=0.0
    )
    experiment = make_experiment(
        RetraceWarning(), model=Averaging(), data=data, batch_size=1, steps=7
    )
    jdl.train(experiment, tmp_path / "run")
    warnings = re.findall(r".*compiled again.*", capsys.readouterr().out)
    assert len(warnings) == 1
    assert "step 4" in warnings[0]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    find = lambda name, *rest: None if name == "wandb" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(UserError, match=r"pip install 'jdl-research\[wandb\]'"):
        jdl.train(make_experiment(WandB()), tmp_path / "run")


class FakeRun:
    """What a listener asks of its run, without a run."""

    steps, steps_per_epoch, splits = 1000, 10, ("train", "validation")
    workdir, traces, dispatched = Path("nowhere"), {}, 0

    def __init__(self, hook):
        self.saves = self.stops = 0
        self.experiment = make_experiment(Evaluate(), hook)

    def save(self):
        self.saves += 1

    def stop(self, reason):
        self.stops += 1

    def evaluate(self, split, state=None):
        raise AssertionError

    log = say = evaluate


def drive(hook, scores, resume_at=()):
    """Gives a listener scores as evaluations do; returns it, the steps saved, and when it stopped.

    At some steps it is made anew from its state, as in a resumed run.
    """
    run = FakeRun(hook)
    listener, saved, stopped = hook.build(run), [], None
    for step, value in enumerate(scores, 1):
        run.saves = 0
        listener.row({"step": step, "split": "validation", "metrics": {"loss": 1, "score": value}})
        timing = {"seconds": 0.0}
        listener(Event(step=step, epoch=0.0, metrics={}, state=object(), timing=timing))
        saved += [step] if run.saves else []
        if run.stops:
            stopped = step
            break
        if step in resume_at:
            state = json.loads(json.dumps(listener.state()))
            listener = hook.build(run)
            listener.restore(state)
    return listener, saved, stopped


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
            listener, saved, stopped = drive(hook, scores, resume_at)
            assert (stopped, listener.weights_step()) == expected, scores
            assert listener.pins() == {expected[1]}
            assert saved[-1] == expected[1], "the weights to go back to are saved"
        stops.add(stopped)
    assert len(stops) > 2


def test_early_stopping_goes_back_to_the_best_weights(tmp_path):
    scores = (9.0, 9.0, 5.0, 5.0, 3.0, 3.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0)  # by step
    hooks = (Evaluate(every=2), EarlyStopping(metric="validation.score", patience=2))
    task = Scripted(scores=scores)
    run = jdl.train(make_experiment(*hooks, task=task, steps=12), tmp_path / "run")
    rows = read_rows(tmp_path / "run", "validation")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert run.result["step"] == 8
    assert run.result["metrics"]["validation"] == rows[1]["metrics"]
    assert int(run.state.step) == 4
    again = jdl.train(make_experiment(*hooks, task=task, steps=12), tmp_path / "run")
    assert again.evaluate("validation") == rows[1]["metrics"]
    assert 4 in saved_steps(tmp_path / "run")


def test_a_score_that_does_not_exist_is_named(tmp_path):
    for metric, message in [
        ("validation", "SPLIT.NAME"),
        ("test.loss", "test.loss is never scored"),
        ("validation.bleu", "no metric 'bleu' of validation .*loss"),
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
        listener, saved, _ = drive(hook, scores, random.integers(1, 10, 3).tolist())
        best = sorted(range(1, 10), key=lambda step: sign * scores[step - 1])[:3]
        assert listener.pins() == {6, 8, *best}
        assert {2, 4, 6, 8, *best} <= set(saved)


def test_a_score_that_is_no_number_is_never_the_best():
    nan = math.nan
    hook = Checkpoint(every=100, best=1, metric="validation.score")
    for scores in ([nan, 2.0, 1.0, nan], [2.0, nan, 1.0, 3.0], [nan, nan, 1.0, nan]):
        assert drive(hook, scores)[0].pins() == {3}
    hook = EarlyStopping(metric="validation.score", patience=9)
    assert drive(hook, [nan, 2.0, 1.0, nan])[0].weights_step() == 3


def test_other_checkpoints_are_deleted(tmp_path):
    scores = (9.0, 9.0, 5.0, 5.0, 1.0, 1.0, 4.0, 4.0, 2.0, 2.0, 3.0, 3.0, 3.0)  # by step
    checkpoint = Checkpoint(every=3, keep=1, best=2, metric="validation.score")
    experiment = make_experiment(
        Evaluate(every=2), checkpoint, task=Scripted(scores=scores), steps=11
    )
    jdl.train(experiment, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [4, 8, 9, 11], "two best, one regular, and the end"


def test_impossible_settings_are_refused():
    for wrong in (
        functools.partial(Evaluate, every=0),
        functools.partial(Checkpoint, every=0),
        functools.partial(Checkpoint, keep=0),
        functools.partial(Checkpoint, best=-1),
        functools.partial(EarlyStopping, patience=0),
        functools.partial(Profile, start=0),
        functools.partial(Profile, steps=0),
    ):
        with pytest.raises(UserError, match="needs"):
            wrong()


def test_a_skipped_step_is_logged_with_the_positions_of_its_batch(tmp_path):
    task = Scripted(bad=(2, 4, 5))
    run = jdl.train(make_experiment(task=task, stop_after_skipped=3, log_every=3), tmp_path / "run")
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


def test_many_skipped_steps_in_a_row_end_the_run_with_one_sentence(tmp_path):
    task = Scripted(bad=tuple(range(3, 20)))
    experiment = make_experiment(
        Checkpoint(every=1, keep=1), task=task, stop_after_skipped=4, steps=20
    )
    for _ in range(2):  # the second time it goes on from step 5 and still counts from step 3
        with pytest.raises(UserError) as ended:
            jdl.train(experiment, tmp_path / "run")
        assert "not finite for 4 steps in a row, up to step 6: the run stops" in str(ended.value)
        assert "\n" not in str(ended.value)
        assert saved_steps(tmp_path / "run") == [5]
        assert [row["step"] for row in read_rows(tmp_path / "run", "skipped")] == [3, 4, 5, 6]
    assert not (tmp_path / "run" / "result.json").exists()
