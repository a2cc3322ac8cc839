"""Hooks between steps, and their output: rows, scores, progress, profiles."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import pty
import re
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jdl
from jdl.data import Data, Source
from jdl.data.splits import Splits
from jdl.errors import UserError, install_command
from jdl.hooks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    Hook,
    Profile,
    Progress,
    RetraceWarning,
    Sample,
    TensorBoard,
    WandB,
)
from jdl.parallel import Single, Steps
from jdl.trainer.run import Run
from tests import interruptions
from tests.runs import ARRAYS, make_experiment, make_split, read_rows

CALLS: list[Any] = []
"""What was done, in order."""


@dataclass(frozen=True)
class Spied(Single):
    """One device; notes each step that is dispatched and marks it in profiles."""

    def compile(self, program, in_memory, step_input) -> Steps:
        steps, count = super().compile(program, in_memory, step_input), iter(range(1, 1000))

        def update(state, step_input):
            step = next(count)
            CALLS.append(("dispatch", step))
            with jax.profiler.TraceAnnotation(f"step-{step}"):
                return steps.update(state, step_input)

        return dataclasses.replace(steps, update=update)


@dataclass(frozen=True, kw_only=True)
class Watch(Hook):
    """Records the events that hooks receive."""

    def build(self, run):
        return _Watch()


class _Watch(Callback):
    def __call__(self, event):
        CALLS.append(("event", event.step, event))
        CALLS.append(("profiler of threads", event.step, threading.getprofile()))

    def close(self):
        CALLS.append(("close",))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """18 steps with every hook that shows something; calls and output."""
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
    experiment = make_experiment(
        *hooks, steps=18, runtime=jdl.Runtime(log_every=5), strategy=Spied()
    )
    output, pipeline, score = io.StringIO(), Splits.pipeline, Run.evaluate_with_host_metrics

    def spied_pipeline(self, name):
        CALLS.append(("open", name))
        return pipeline(self, name)

    def spied_score(self, split="test", state=None, key=None):
        CALLS.append(("evaluate", split))
        return score(self, split, state)

    CALLS.clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(Splits, "pipeline", spied_pipeline)
        patch.setattr(Run, "evaluate_with_host_metrics", spied_score)
        run = jdl.train(experiment, workdir)
    return run, workdir, list(CALLS), output.getvalue()


def score(run, workdir, step, split):
    """Loss and accuracy of the weights of a step, in float64 and without any of our own code."""
    like = run.compiled.abstract_state
    from jdl.checkpoint import CheckpointStore

    with contextlib.closing(CheckpointStore(workdir / "checkpoints")) as store:
        params = store.restore(step, like)[0].params["Dense_0"]
    x, labels = ARRAYS[split]["image"], ARRAYS[split]["label"]
    logits = x.astype(np.float64) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    right = logits.argmax(1) == labels
    loss = -logits[np.arange(len(x)), labels].mean()
    return {"loss": loss, "nll": loss, "accuracy": right.mean()}


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
    _, workdir, _, output = watched
    pattern = (
        r"step (\d+)/18  train .*loss (\S+).*  (\d+) steps/s (\d+) items/s  "
        r"(\d+) s left \(compiled in (\S+) s\)"
    )
    lines = re.findall(pattern, output)
    rows = read_rows(workdir, "train")
    assert [int(line[0]) for line in lines] == [row["step"] for row in rows] == [5, 10, 15, 18]
    for line, row in zip(lines, rows, strict=True):
        timing = row["timing"]
        rate = timing["steps_per_second"]
        assert float(line[1]) == pytest.approx(row["metrics"]["loss"], abs=1e-4)
        assert [int(line[2]), int(line[3])] == pytest.approx([rate, 8 * rate], abs=0.6)
        mean = timing["training_seconds"] / row["step"]
        assert int(line[4]) == pytest.approx((18 - row["step"]) * mean, abs=0.6)
        assert float(line[5]) == pytest.approx(timing["compile_seconds"], abs=0.06)
        assert 0 < timing["training_seconds"] < timing["seconds"]
    assert len(re.findall(r"step \d+/18  validation .*loss", output)) == 5
    assert "\x1b" not in output, "plain lines where there is no terminal"


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
            jdl.train(
                make_experiment(Progress(), Evaluate(every=3), runtime=jdl.Runtime(log_every=2)),
                tmp_path / "r",
            )
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

    def full_name(self):
        return "ragged"


class Averaging(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.mean(-1, keepdims=True))


def test_a_batch_of_another_shape_is_warned_of_by_its_step(watched, tmp_path, capsys):
    assert "recompiled" not in watched[3]
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
    with pytest.raises(UserError, match=re.escape(install_command("wandb"))):
        jdl.train(make_experiment(WandB()), tmp_path / "run")


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


def test_samples_of_any_task_are_written_again_by_a_resumed_run(tmp_path):
    hook, every = Sample(every=3, count=5, split="train"), Checkpoint(every=4)
    experiment = interruptions.make_experiment(hooks=(hook, every))
    whole = jdl.train(experiment, tmp_path / "whole")
    with pytest.raises(interruptions.Killed):
        jdl.train(interruptions.interrupt_at(experiment, 10), tmp_path / "part")
    (tmp_path / "part" / "samples" / "step-000000009.txt").write_text("of a later step")
    jdl.train(experiment, tmp_path / "part")
    names = [f"step-{step:09d}.txt" for step in (3, 6, 9, 12, 14)]
    for folder in ("whole", "part"):
        assert sorted(p.name for p in (tmp_path / folder / "samples").iterdir()) == names
    for name in names:
        texts = [(tmp_path / folder / "samples" / name).read_text() for folder in ("whole", "part")]
        assert texts[0] == texts[1]
        assert len(texts[0].split("---------------\n")) == 5
    first = json.loads(texts[0].splitlines()[0])
    images = interruptions.make_arrays()["image"][:1]
    assert first["prediction"] == whole.predict(images)[0].argmax()


def test_a_sample_hook_that_cannot_work_is_refused():
    for make, message in (
        (lambda: Sample(every=0), "Sample needs every >= 1 steps, not 0"),
        (lambda: Sample(count=0), "Sample needs count >= 1 samples, not 0"),
        (lambda: train_with(Sample(split="tset")), r"Sample: no split 'tset' \(there are train"),
        (
            lambda: train_with(Sample(), Sample()),
            "two hooks Sample write into the folder 'samples'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            make()


def train_with(*hooks):
    return jdl.train(interruptions.make_experiment(hooks=hooks))
