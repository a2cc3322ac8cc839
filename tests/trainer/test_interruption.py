"""What a run does with signals: in this process, or in one that only waits for them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.hooks import Callback, Checkpoint, Evaluate, Hook
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.sweeps.seeds import train_seeds
from jdl.trainer import interrupt
from jdl.trainer.interrupt import Interrupted, Interruption
from jdl.trainer.run import Run
from tests import kill_resume

STUCK = """
import threading
from jdl.trainer import interrupt

interrupt.GRACE_SECONDS = 0.1
with interrupt.Interruption() as interruption:
    interruption.begin()
    print("ready", flush=True)
    while True:  # as a loop that never comes to the end of its step
        threading.Event().wait(1e6)
"""


SLOW = """
import time
from jdl.trainer import interrupt

interrupt.GRACE_SECONDS = 0.1
with interrupt.Interruption() as interruption:
    interruption.begin()
    interruption.expect(600.0)
    print("ready", flush=True)
    while not interruption.requested:
        time.sleep(0.01)
    time.sleep(1)  # as a step that takes longer than the grace
    print("saved", flush=True)
    interruption.end()
"""


def test_a_step_longer_than_the_grace_period_is_waited_for():
    done = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    with done as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=600)[0] == "saved\n"
        assert process.returncode == 75


@pytest.mark.parametrize("vectorize", ["never", "always"])
def test_loops_tell_how_long_their_executions_last(vectorize, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(Interruption, "expect", lambda self, seconds: told.append(seconds))
    train_seeds(make_experiment(), 2, tmp_path, vectorize=vectorize)
    assert told
    assert min(told) > 0


def test_a_process_that_is_stuck_ends_after_its_grace_period():
    assert interrupt.GRACE_SECONDS < 5
    words = [sys.executable, "-c", STUCK]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=600) == 75


def make_experiment(**changes):
    x = np.eye(8, dtype=np.float32)
    arrays = {"image": x, "label": np.arange(8) % 2}
    settings = {
        "model": MLP(widths=(), features=2),
        "data": Arrays({"train": arrays, "validation": arrays, "test": arrays}),
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": (Evaluate(every=2), Checkpoint(every=2)),
        "steps": 5,
        "batch_size": 4,
        **changes,
    }
    return jdl.Experiment(**settings)


def test_while_the_finished_run_is_scored(tmp_path, monkeypatch):
    real = Run.evaluate_with_host_metrics

    def score(self, split="test", *args):
        if split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, split, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate_with_host_metrics", score)
        with pytest.raises(SystemExit) as ended:
            jdl.train(make_experiment(), tmp_path / "run")
    assert ended.value.code == 75
    assert not (tmp_path / "run" / "result.json").exists()
    run = jdl.train(make_experiment(), tmp_path / "run")
    assert run.result["step"] == 5
    jdl.train(make_experiment(), tmp_path / "whole")
    assert kill_resume.differences(tmp_path / "whole", tmp_path / "run") == []


def handlers():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), wakeup


class Signal(Hook):
    def build(self, run):
        return Signaling()


class Signaling(Callback):
    def due(self, step):
        return step == 2

    def __call__(self, event):
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_without_a_directory_does_not_promise_to_be_resumed(kept, tmp_path, capsys):
    workdir = tmp_path / "run" if kept else None
    with pytest.raises(Interrupted):
        jdl.train(make_experiment(hooks=(Signal(),)), workdir)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "interrupted" in line)
    if kept:
        assert re.fullmatch(r"interrupted; saved at step \d: run the same command to resume", line)
    else:
        assert re.fullmatch(
            r"interrupted at step \d; not saved: give a workdir, and a run can be resumed", line
        )


class Stumble(Hook):
    def build(self, run):
        return Stumbling()


class Stumbling(Callback):
    def __call__(self, event):
        raise RuntimeError("a hook's own mistake")


def test_signals_are_given_back_however_the_run_ends(tmp_path):
    before = handlers()
    jdl.train(make_experiment(steps=1), tmp_path / "one")
    assert handlers() == before
    with pytest.raises(RuntimeError, match="own mistake"):
        jdl.train(make_experiment(hooks=(Stumble(),)), tmp_path / "two")
    assert handlers() == before


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    before, results = handlers(), []

    def work():
        results.append(jdl.train(make_experiment(steps=1), tmp_path / "run").result["step"])
        results.append(handlers_of_main == before)

    thread = threading.Thread(target=work)
    handlers_of_main = handlers()
    thread.start()
    thread.join()
    assert results == [1, True]
    assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_is_ignored_is_not_forgotten(number):
    """As Python does with exceptions that come up in a callback of the garbage collector."""
    reached = []

    def work():
        with Interruption():
            with contextlib.suppress(Interrupted):
                os.kill(os.getpid(), number)
                time.sleep(1)
            reached.append(True)

    with pytest.raises(Interrupted):
        work()
    assert reached
