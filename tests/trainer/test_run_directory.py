"""What a run directory takes and what it refuses: changes, a second writer, what is left in it."""

import dataclasses
import fcntl
import json
import subprocess
import sys
from dataclasses import dataclass

import flax.linen as nn
import numpy as np
import pytest

import jdl
from jdl import UserError
from jdl.data import Data, Scale
from jdl.data.arrays import ArraySource
from jdl.data.base import Source
from jdl.hooks import Evaluate, Hook, Listener
from jdl.optimizers import SGD, Adam, Constant
from jdl.parallel import DataParallel
from tests import kill_resume
from tests.breaks import Killed, broken, make_arrays, make_experiment
from tests.runs import Scored


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run broken off at step 5."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Killed):
        jdl.train(broken(make_experiment(), 5), workdir)
    return workdir


def contents(workdir):
    """Bytes and time of change of every file, and time of change of every directory."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [workdir, *workdir.rglob("*")]
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": SGD(0.2, momentum=0.9)}, r"optimizer\.learning_rate: 0\.1 -> 0\.2"),
        ({"optimizer": Adam(0.1)}, "optimizer: sgd -> adam"),
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model": nn.Dense(3)}, "model: net -> dense"),
        ({"task": Scored(label_smoothing=0.1)}, r"task\.label_smoothing: 0\.0 -> 0\.1"),
        ({"data": {"arrays": {"train": make_arrays(1)}}}, r"data\.arrays\.train\.image"),
        ({"data": {"device_transforms": (Scale(),)}}, r"data\.device_transforms\.0\.divisor"),
        ({"data": {"pipeline": "grain"}}, r"data\.pipeline: auto -> grain"),
        ({"stop_after_skipped": 3}, "stop_after_skipped: 10 -> 3"),
    ],
)
def test_other_settings_are_refused_by_name(changes, named, interrupted):
    before = contents(interrupted)
    with pytest.raises(UserError, match=named):
        jdl.train(make_experiment(**changes), interrupted)
    assert contents(interrupted) == before


def test_a_run_of_another_experiment_is_refused(interrupted):
    file = jdl.load("digits_mlp")
    with pytest.raises(UserError, match=r"holds a run of 'experiment', not of 'digits_mlp'"):
        jdl.train(file.experiment, interrupted, file=file)


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    constant = {"steps": None, "optimizer": SGD(0.1, schedule=Constant())}
    jdl.train(make_experiment(epochs=1.5, **constant), tmp_path / "run")
    longer = jdl.train(make_experiment(epochs=3.5, **constant), tmp_path / "run")
    whole = jdl.train(make_experiment(epochs=3.5, **constant), tmp_path / "whole")
    assert longer.result["step"] == whole.result["step"] == 14
    assert longer.result["params_sha256"] == whole.result["params_sha256"]
    with pytest.raises(UserError, match=r"holds a run of 14 steps.* not shrink to 6"):
        jdl.train(make_experiment(epochs=1.5, **constant), tmp_path / "run")
    assert jdl.train(make_experiment(epochs=3.5, **constant), tmp_path / "run").result == (
        longer.result
    )


def test_strategy_and_hooks_may_change(plain, tmp_path):
    with pytest.raises(Killed):
        jdl.train(broken(make_experiment(), 9), tmp_path / "run")
    other = make_experiment(strategy=DataParallel(), hooks=(Evaluate(every=7),))
    run = jdl.train(other, tmp_path / "run")
    rows = kill_resume.rows(tmp_path / "run")
    validated = [row["step"] for row in rows if row["split"] == "validation"]
    assert validated == [3, 6, 14], "evaluated every 3 steps up to step 8, then every 7"
    expected = json.loads((plain / "result.json").read_text())
    assert run.result["step"] == 14
    for split, metrics in expected["metrics"].items():
        assert run.result["metrics"][split] == pytest.approx(metrics, rel=1e-4)


@dataclass(frozen=True, kw_only=True)
class Stored(Data):
    """Arrays in a file."""

    path: str

    def load(self) -> dict[str, Source]:
        with np.load(self.path) as arrays:
            return {"train": ArraySource(dict(arrays))}

    def describe(self):
        return "stored:1.0"


def test_data_that_changed_since_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", **make_arrays())
    stored = Stored(path=str(tmp_path / "data.npz"), device_transforms=(Scale(divisor=16.0),))
    experiment = dataclasses.replace(make_experiment(), data=stored)
    with pytest.raises(Killed):
        jdl.train(broken(experiment, 5), tmp_path / "run")
    arrays = make_arrays()
    arrays["image"][3, 0, 0, 0] ^= 1
    np.savez(tmp_path / "data.npz", **arrays)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"data of .* changed since it began: data\.\w+\.sha256"):
        jdl.train(experiment, tmp_path / "run")
    after = contents(tmp_path / "run")
    assert {p: v for p, v in after.items() if p.is_file() and p.name != ".lock"} == {
        p: v for p, v in before.items() if p.is_file() and p.name != ".lock"
    }
    np.savez(tmp_path / "data.npz", **make_arrays())
    assert jdl.train(experiment, tmp_path / "run").result["step"] == 14


def test_a_finished_run_is_left_as_it_is(plain):
    before = contents(plain)
    run = jdl.train(make_experiment(), plain)
    assert run.result == json.loads((plain / "result.json").read_text())
    assert run.evaluate("test") == run.result["metrics"]["test"]
    assert contents(plain) == before


def test_rows_after_the_restored_step_and_a_torn_line_are_cut(plain, tmp_path):
    with pytest.raises(Killed):
        jdl.train(broken(make_experiment(), 9), tmp_path / "run")
    rows = tmp_path / "run" / "metrics.jsonl"
    assert max(row["step"] for row in kill_resume.rows(tmp_path / "run")) == 9 > 8
    later = {"step": 10, "epoch": 2.5, "split": "train", "metrics": {"loss": 0}, "timing": {}}
    with rows.open("a") as file:
        file.write(json.dumps(later) + "\n" + json.dumps(later)[:25])
    jdl.train(make_experiment(), tmp_path / "run")
    assert kill_resume.differences(plain, tmp_path / "run") == []
    assert all(json.loads(line) for line in rows.read_text().splitlines())


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_dead_one_does_not_block(interrupted):
    words = [sys.executable, "-c", HOLD, str(interrupted / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = contents(interrupted)
        with pytest.raises(UserError, match="in use by another run"):
            jdl.train(make_experiment(), interrupted)
        assert contents(interrupted) == before
        holder.kill()
    assert jdl.train(make_experiment(), interrupted).result["step"] == 14


def test_the_directory_is_locked_while_the_run_is_on(tmp_path):
    refused = []

    class Try(Listener):
        def __call__(self, event):
            with (tmp_path / "run" / ".lock").open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    refused.append(event.step)

    @dataclass(frozen=True, kw_only=True)
    class Trying(Hook):
        def build(self, run):
            return Try()

    jdl.train(make_experiment(hooks=(Trying(),), steps=3), tmp_path / "run")
    assert refused == [1, 2, 3]
    with (tmp_path / "run" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("left", [(".lock",), (".lock", ".experiment.json.tmp")])
def test_killed_before_it_was_a_run_the_directory_can_be_used(left, plain, tmp_path):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("process 1")
    jdl.train(make_experiment(), tmp_path / "run")
    assert kill_resume.differences(plain, tmp_path / "run") == []


def test_a_directory_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no run \(it holds notes\.txt\)"):
        jdl.train(make_experiment(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
