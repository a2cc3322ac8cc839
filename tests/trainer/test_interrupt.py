"""SIGTERM and Ctrl-C, sent to real processes: exit code 75 within a grace period, nothing lost.

A slow place sleeps for longer than any test waits, or until the file `go` is there: no outcome
depends on how fast the machine is.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jdl.cli.main import main
from tests import kill_resume

EXPERIMENT = '''
"""Says "ready" and becomes slow at the place that the environment names."""
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jdl import Experiment, Runtime
from jdl.data import Arrays
from jdl.hooks import Checkpoint, Evaluate, Hook, Callback, Progress
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.trainer import interrupt

place = os.environ.get("SLOW_PLACE")
go = Path(os.environ.get("GO", "nowhere"))
if place in ("hook", "step"):
    interrupt.GRACE_SECONDS = 1e6  # only a second signal ends it
evaluating = False


def slow(where, seconds=1e6):
    if place == where:
        print("ready", flush=True)
        time.sleep(seconds)


slow("load")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        slow("first trace")
        if train:
            slow("update trace")
        if train and place == "step":
            shape = jax.ShapeDtypeStruct((), x.dtype)
            x = x + jax.pure_callback(wait, shape, jax.lax.stop_gradient(x.sum()))
        return nn.Dense(3)(x)


def wait(x):
    slow("step")
    return np.zeros_like(x)


@dataclass(frozen=True, kw_only=True)
class Announce(Hook):
    at: int = 7

    def build(self, run):
        return Announcing(self.at + 2 * (place == "training"))  # no evaluation is compiled there


def wait_for_go():
    while not go.exists():
        time.sleep(0.01)


class Announcing(Callback):
    def __init__(self, at):
        self.at = at

    def begin(self):
        if place in ("hook", "step"):
            announce_signals()

    def due(self, step):
        return step == self.at

    def __call__(self, event):
        global evaluating
        if event.step > self.at and place == "training":
            wait_for_go()
        if event.step == self.at:
            slow("training", 0)
            slow("hook")
            slow("evaluation", 0)
            evaluating = place == "evaluation"


def read(example):
    if evaluating:
        wait_for_go()
    return example


def announce_signals():
    """Says "noticed" after each signal that the run handles without ending."""
    handle = signal.getsignal(signal.SIGINT)

    def announce(number, frame):
        handle(number, frame)
        print("noticed", flush=True)

    signal.signal(signal.SIGINT, announce)


values = np.random.default_rng(0)
x = values.normal(size=(80, 6)).astype(np.float32)
arrays = {"image": x, "label": np.digitize(x[:, 0], [-0.5, 0.5])}
experiment = Experiment(
    model=Net(),
    data=Arrays(
        {"train": arrays}, transforms=(read,), pipeline="grain", validation_fraction=0.4
    ),
    optimizer=SGD(0.1, momentum=0.9),
    strategy=Single(),
    hooks=(Announce(), Evaluate(every=7), Checkpoint(every=10), Progress()),
    steps=24,
    batch_size=4,
    runtime=Runtime(log_every=1),
)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "slow.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def whole(file):
    """The run never stopped."""
    workdir = file.with_name("whole")
    assert main(["train", str(file), "--workdir", str(workdir)]) == 0
    return workdir


class Command:
    """The command in a process of its own, slow at one place."""

    def __init__(self, file, workdir, place):
        self.go = workdir.with_name("go")
        words = [sys.executable, "-m", "jdl", "train", str(file), "--workdir", str(workdir)]
        self.process = subprocess.Popen(
            words,
            env={**os.environ, "SLOW_PLACE": place, "GO": str(self.go)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_until_it_says(self, word):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line == f"{word}\n":
                return
        pytest.fail(f"it ended too early: {self.output}")

    def wait_until_it_maps(self, library):
        while self.process.poll() is None:
            if library in Path(f"/proc/{self.process.pid}/maps").read_text():
                return
            time.sleep(0.01)
        pytest.fail("it ended too early")

    def end(self, number):
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        self.go.touch()
        code = self.process.wait(timeout=600)
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return code


def last_row(workdir):
    return max(row["step"] for row in kill_resume.rows(workdir))


@pytest.mark.parametrize(
    ("place", "number"),
    [("training", signal.SIGTERM), ("evaluation", signal.SIGINT)],
)
def test_it_saves_exits_and_goes_on_exactly(place, number, file, whole, tmp_path, capsys):
    with Command(file, tmp_path / "run", place) as command:
        command.wait_until_it_says("ready")
        code = command.end(number)
    assert code == 75, command.output
    assert "Traceback" not in command.output
    saved = kill_resume.checkpoints(tmp_path / "run")[-1]
    if place == "training":
        assert 9 < saved < 24
        assert saved == last_row(tmp_path / "run"), "no step was lost"
    else:
        assert saved == 7, "at the step that was being evaluated"
    assert f"saved at step {saved}" in command.output
    assert main(["train", str(file), "--workdir", str(tmp_path / "run")]) == 0
    assert f"resuming from step {saved} of 24" in capsys.readouterr().out
    assert kill_resume.differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_it_imports(number, file, tmp_path):
    with Command(file, tmp_path / "run", "load") as command:
        command.wait_until_it_maps("jaxlib")
        code = command.end(number)
    assert code == 75, command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("load", signal.SIGINT),
        ("first trace", signal.SIGINT),
        ("update trace", signal.SIGTERM),
    ],
)
def test_while_it_starts_up(place, number, file, tmp_path):
    with Command(file, tmp_path / "run", place) as command:
        command.wait_until_it_says("ready")
        code = command.end(number)
    assert code == 75, command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize("place", ["hook", "step"])
def test_a_second_signal_ends_it_at_once(place, file, tmp_path):
    with Command(file, tmp_path / "run", place) as command:
        command.wait_until_it_says("ready")
        command.process.send_signal(signal.SIGINT)
        command.wait_until_it_says("noticed")
        code = command.end(signal.SIGINT)
    assert code == 75, command.output
    assert "Traceback" not in command.output


def test_the_command_of_a_finished_run_exits_with_0_and_changes_nothing(file, whole):
    def contents():
        paths = [whole, *whole.rglob("*")]
        return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in paths}

    before = contents()
    assert main(["train", str(file), "--workdir", str(whole)]) == 0
    assert contents() == before
