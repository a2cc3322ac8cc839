"""What a run directory accepts and refuses: changes, a second writer, leftover files."""

import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

import flax.linen as nn
import numpy as np
import pytest

import jdl
from jdl import UserError
from jdl.data import TFDS, Data, Scale, Selection, Tokens
from jdl.data.arrays import ArraySource
from jdl.data.base import location_paths
from jdl.data.sources import Source
from jdl.hooks import Callback, Evaluate, Hook
from jdl.optimizers import SGD, Adam, Constant
from jdl.parallel import DataParallel
from tests import kill_resume
from tests.interruptions import Killed, Net, interrupt_at, make_arrays, make_experiment
from tests.runs import Scored


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run broken off at step 5."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 5), workdir)
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
        jdl.train(interrupt_at(make_experiment(), 9), tmp_path / "run")
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

    locations = ("path",)

    def load(self) -> dict[str, Source]:
        with np.load(self.path) as arrays:
            return {"train": ArraySource(dict(arrays))}

    def full_name(self):
        return "stored:1.0"


def test_data_that_changed_since_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", **make_arrays())
    stored = Stored(path=str(tmp_path / "data.npz"), device_transforms=(Scale(divisor=16.0),))
    experiment = dataclasses.replace(make_experiment(), data=stored)
    with pytest.raises(Killed):
        jdl.train(interrupt_at(experiment, 5), tmp_path / "run")
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


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A run of streamed data that was never stopped."""
    return jdl.train(make_experiment(data={"pipeline": "grain"}), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "runtime",
    [
        {"log_every": 3},
        # Each process takes seconds to start; `tests/data/test_pipeline.py` compares their batches.
        pytest.param({"workers": 1}, marks=pytest.mark.slow),
        {"malloc_arenas": 0},
        {"steps_per_execution": 2},
    ],
    ids=str,
)
def test_a_resumed_run_may_change_its_runtime(runtime, streamed, tmp_path):
    experiment = make_experiment(data={"pipeline": "grain"})
    with pytest.raises(Killed):
        jdl.train(interrupt_at(experiment, 9), tmp_path / "run")
    changed = dataclasses.replace(experiment.runtime, **runtime)
    run = jdl.train(dataclasses.replace(experiment, runtime=changed), tmp_path / "run")
    assert run.result["params_sha256"] == streamed.result["params_sha256"]
    assert run.result["metrics"] == streamed.result["metrics"]
    rows = kill_resume.rows(tmp_path / "run")
    steps = [row["step"] for row in rows if row["split"] == "train"]
    # Saved at step 8; a row is the mean over the steps since the last one, at whatever interval.
    assert steps == ([5, 9, 12, 14] if "log_every" in runtime else [5, 10, 14])


def test_a_training_row_after_a_change_of_interval_covers_all_steps_since_the_last(tmp_path):
    def losses(workdir):
        rows = kill_resume.rows(workdir)
        return {row["step"]: row["metrics"]["loss"] for row in rows if row["split"] == "train"}

    every = jdl.Runtime(log_every=1)
    jdl.train(make_experiment(runtime=every), tmp_path / "whole")
    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 9), tmp_path / "run")
    jdl.train(make_experiment(runtime=jdl.Runtime(log_every=3)), tmp_path / "run")
    each = losses(tmp_path / "whole")
    expected = np.mean([each[step] for step in (6, 7, 8, 9)])
    assert losses(tmp_path / "run")[9] == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def stored(tmp_path):
    """An experiment on arrays in a file, and its run broken off at step 5."""
    np.savez(tmp_path / "data.npz", **make_arrays())
    data = Stored(path=str(tmp_path / "data.npz"), device_transforms=(Scale(divisor=16.0),))
    experiment = dataclasses.replace(make_experiment(), data=data)
    with pytest.raises(Killed):
        jdl.train(interrupt_at(experiment, 5), tmp_path / "run")
    return experiment


def at(experiment, path, **changes):
    """The experiment with its data at another path."""
    data = dataclasses.replace(experiment.data, path=str(path), **changes)
    return dataclasses.replace(experiment, data=data)


def test_a_resumed_run_may_read_the_same_bytes_from_another_path(stored, tmp_path):
    whole = jdl.train(stored, tmp_path / "whole")
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    moved = at(stored, tmp_path / "moved.npz")
    with pytest.raises(UserError, match=r"settings \(data.device_transforms.0.divisor: 16.0 -> 8"):
        jdl.train(
            at(stored, tmp_path / "moved.npz", device_transforms=(Scale(divisor=8.0),)),
            tmp_path / "run",
        )
    run = jdl.train(moved, tmp_path / "run")
    assert run.result["params_sha256"] == whole.result["params_sha256"]
    assert jdl.train(moved, tmp_path / "run").result == run.result
    assert jdl.open(tmp_path / "run", moved).result == run.result


def test_other_bytes_at_another_path_are_refused(stored, tmp_path):
    other = at(stored, tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", **make_arrays(1))
    changed = r"data of .* changed since it began: data\.\w+\.sha256"
    with pytest.raises(UserError, match=changed):
        jdl.train(other, tmp_path / "run")
    with pytest.raises(UserError, match=changed):
        jdl.open(tmp_path / "run", other).evaluate()
    assert jdl.open(tmp_path / "run", other, allow_changed_data=True).evaluate()
    scaled = at(stored, tmp_path / "other.npz", device_transforms=(Scale(divisor=8.0),))
    with pytest.raises(UserError, match=r"device_transforms.*allow_changed_data"):
        jdl.open(tmp_path / "run", scaled)
    scores = [
        jdl.open(tmp_path / "run", each, allow_changed_data=True).evaluate()
        for each in (other, scaled)
    ]
    assert scores[0] != scores[1]
    wider = dataclasses.replace(scaled, optimizer=SGD(0.5))
    with pytest.raises(UserError, match="optimizer"):
        jdl.open(tmp_path / "run", wider, allow_changed_data=True)
    jdl.train(stored, tmp_path / "run")
    with pytest.raises(UserError, match=changed):  # of a finished run, too
        jdl.train(other, tmp_path / "run")


def test_locations_are_found_in_wrapped_sets():
    data = Selection(Tokens(TFDS("a")), classes=(0,))
    assert location_paths(data) == ["data.data.text.data_dir", "data.data.text.download"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": Net(dropout_rate=0.5)}, r"model\.dropout_rate: 0\.0 -> 0\.5"),
        ({"task": Scored(label_smoothing=0.1)}, r"task\.label_smoothing: 0\.0 -> 0\.1"),
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
    ],
)
def test_open_refuses_other_settings_by_name(changes, named, plain):
    with pytest.raises(UserError, match=rf"holds a run with other settings \({named}\)"):
        jdl.open(plain, make_experiment(**changes))
    run = jdl.open(plain, make_experiment(strategy=DataParallel(), runtime=jdl.Runtime()))
    assert run.result["step"] == 14


def test_a_field_younger_than_the_record_has_its_default(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "old")
    record = json.loads((tmp_path / "old" / "experiment.json").read_text())
    for path in ("task.label_smoothing", "model.dropout_rate"):
        del record["fields"][path]
    (tmp_path / "old" / "experiment.json").write_text(json.dumps(record))
    assert jdl.open(tmp_path / "old", make_experiment()).result["step"] == 14
    with pytest.raises(UserError, match=r"\(task\.label_smoothing: None -> 0\.1\)"):
        jdl.open(tmp_path / "old", make_experiment(task=Scored(label_smoothing=0.1)))


def test_open_reads_the_experiment_of_the_directory(plain, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from tests.interruptions import make_experiment\nexperiment = make_experiment()\n"
    )
    file = jdl.load(path)
    trained = jdl.train(file.experiment, tmp_path / "run", file=file)
    run = jdl.open(str(tmp_path / "run"))
    assert (run.name, run.evaluate("test")) == ("own", trained.result["metrics"]["test"])
    (tmp_path / "run/experiment.py").write_text(path.read_text() + "\nexperiment = None\n")
    with pytest.raises(UserError, match="defines no `experiment"):
        jdl.open(tmp_path / "run")
    assert jdl.open(plain).result  # it was started from Python


def test_a_finished_run_is_left_as_it_is(plain):
    before = contents(plain)
    run = jdl.train(make_experiment(), plain)
    assert run.result == json.loads((plain / "result.json").read_text())
    assert run.evaluate("test") == run.result["metrics"]["test"]
    assert contents(plain) == before


def test_rows_after_the_restored_step_and_a_torn_line_are_cut(plain, tmp_path):
    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 9), tmp_path / "run")
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

    class Try(Callback):
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
