"""A run interrupted anywhere ends bit for bit like an uninterrupted one."""

import contextlib
import dataclasses
import json
import random
import shutil
import signal
from dataclasses import dataclass
from typing import Any

import pytest

import jdl
from jdl import UserError
from jdl.data import RandomCrop, Scale
from jdl.hooks import Callback, Checkpoint, EarlyStopping, Evaluate, Hook
from jdl.metrics import ConfusionMatrix, MacroF1
from jdl.optimizers import SGD, Adam, Cosine, ReduceOnPlateau
from tests import kill_resume
from tests.interruptions import InterruptAt, Killed, Net, interrupt_at, make_experiment
from tests.runs import Scored


def train_broken(experiment, workdir, *breaks, **options):
    """Trains with breaks at the given steps, by exception and by signal in turn, to the end."""
    for i, at in enumerate(breaks):
        if i % 2:
            with pytest.raises(SystemExit) as ended:
                jdl.train(interrupt_at(experiment, at, signal.SIGTERM, **options), workdir)
            assert ended.value.code == 75
        else:
            with pytest.raises(Killed):
                jdl.train(interrupt_at(experiment, at, **options), workdir)
    return jdl.train(experiment, workdir)


SCORES = tuple([9.0] * 3 + [5.0] * 3 + [3.0] * 3 + [4.0] * 6)  # best of the evaluations: step 6

CASES = {
    "dropout, batch statistics and augmentation": {
        "model": Net(normed=True, dropout_rate=0.3),
        "data": {"device_transforms": (RandomCrop(padding=1), Scale(divisor=16.0))},
    },
    "averaged weights and early stopping": {
        "task": Scored(scores=SCORES),
        "optimizer": Adam(0.01, ema_decay=0.9, schedule=Cosine(warmup=0.2)),
        "hooks": (
            Evaluate(every=3),
            EarlyStopping(metric="validation.score", patience=2),
            Checkpoint(every=4),
        ),
    },
    "reduction on plateaus and best checkpoints": {
        "task": Scored(scores=SCORES),
        "optimizer": SGD(
            0.5, schedule=ReduceOnPlateau(patience=1, accumulation_size=2, factor=0.5)
        ),
        "hooks": (Evaluate(every=3), Checkpoint(every=4, best=2, metric="validation.score")),
    },
    "grain and saves behind the training": {
        "data": {"pipeline": "grain"},
        "hooks": (Evaluate(every=3), Checkpoint(every=4, asynchronous=True)),
    },
    "steps per execution, micro-batches and metrics of arrays": {
        "task": Scored(metrics=(ConfusionMatrix(), MacroF1())),
        "runtime": jdl.Runtime(steps_per_execution=3, log_every=5),
        "num_microbatches": 2,
        "hooks": (Evaluate(every=6), Checkpoint(every=6)),
    },
}


@pytest.mark.parametrize("case", CASES)  # saved at 4 or 6, broken off at 7, saved again near 9
def test_a_broken_run_ends_as_one_that_never_was(case, tmp_path):
    experiment = make_experiment(**CASES[case])
    run = jdl.train(experiment, tmp_path / "whole")
    again = train_broken(experiment, tmp_path / "broken", 7, 9)
    assert kill_resume.differences(tmp_path / "whole", tmp_path / "broken") == []
    assert again.result["metrics"] == run.result["metrics"]
    assert again.result.get("arrays") == run.result.get("arrays")
    rows = kill_resume.rows(tmp_path / "broken")
    if "early stopping" in case:
        assert run.result["step"] == 12, "stopped two evaluations after the best"
        scored = [row["metrics"] for row in rows if row["split"] == "validation"]
        assert run.result["metrics"]["validation"] == scored[1], "with the weights of step 6"
    else:
        assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 14]


def test_broken_before_the_first_save_it_starts_over(plain, tmp_path):
    train_broken(make_experiment(), tmp_path / "run", 2)
    assert kill_resume.differences(plain, tmp_path / "run") == []


@pytest.mark.parametrize("at", [1, 4, 14])
def test_a_signal_loses_no_step(at, plain, tmp_path):
    experiment = make_experiment()
    with pytest.raises(SystemExit) as ended:
        jdl.train(interrupt_at(experiment, at, signal.SIGINT), tmp_path / "run")
    assert ended.value.code == 75
    assert at <= kill_resume.checkpoints(tmp_path / "run")[-1] <= at + 1
    jdl.train(experiment, tmp_path / "run")
    assert kill_resume.differences(plain, tmp_path / "run") == []


@dataclass(frozen=True, kw_only=True)
class Seen(Hook):
    """Records the events of each step."""

    steps: Any = dataclasses.field(default_factory=dict)

    def build(self, run):
        return _Seen(self.steps)


class _Seen(Callback):
    def __init__(self, steps):
        self._steps = steps

    def __call__(self, event):
        values = {name: metric.compute() for name, metric in event.metrics.items()}
        self._steps[event.step] = (event.epoch, values)


@dataclass(frozen=True, kw_only=True)
class Listing(Hook):
    """Records the steps that it sees in a list, which is its state."""

    def build(self, run):
        return _Listing()


class _Listing(Callback):
    def __init__(self):
        self._steps = []

    def __call__(self, event):
        self._steps.append(event.step)

    def state(self):
        return self._steps

    def restore(self, state):
        self._steps = state


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "task": Scored(metrics=(MacroF1(),)),
            "num_microbatches": 2,
            "hooks": (Listing(), Evaluate(every=3), Checkpoint(every=4)),
        },
    ],
)
def test_an_event_that_an_evaluation_was_cut_short_in_is_delivered_again(changes, plain, tmp_path):
    experiment = make_experiment(**changes)
    with pytest.raises(SystemExit):
        jdl.train(interrupt_at(experiment, 12, signal.SIGTERM, True, True), tmp_path / "run")
    newest = kill_resume.newest(tmp_path / "run")
    assert json.loads((newest / "meta.json").read_text())["pending"] is not None
    assert kill_resume.checkpoints(tmp_path / "run")[-1] == 12
    rows = kill_resume.rows(tmp_path / "run")
    assert (12, "validation") not in [(row["step"], row["split"]) for row in rows]
    jdl.train(experiment, tmp_path / "run")
    if changes:
        plain = tmp_path / "whole"
        jdl.train(experiment, plain)
    assert kill_resume.differences(plain, tmp_path / "run") == []


def test_hooks_are_told_the_same_after_a_break(tmp_path):
    def make(seen, at=0):
        hooks = (InterruptAt(at=at, how=signal.SIGTERM, due=True), Evaluate(every=3), seen)
        # Sums over 7 examples: their means show whether they were kept in float32.
        return dataclasses.replace(make_experiment(), hooks=hooks, batch_size=7)

    whole, resumed = Seen(), Seen()
    jdl.train(make(whole), tmp_path / "whole")
    with pytest.raises(SystemExit):
        jdl.train(make(resumed, 6), tmp_path / "run")
    jdl.train(make(resumed), tmp_path / "run")
    assert resumed.steps == whole.steps


@dataclass(frozen=True, kw_only=True)
class Stop(Hook):
    """Ends the run at step 5, in a way that is due there or not."""

    due: bool

    def build(self, run):
        return _Stop(run, self.due)


class _Stop(Callback):
    def __init__(self, run, due):
        self._run, self._due = run, due

    def due(self, step):
        return self._due and step == 5

    def __call__(self, event):
        if event.step == 5:
            self._run.stop("enough")


def test_a_hook_stops_the_run_at_the_step_that_it_is_told_of(tmp_path):
    run = jdl.train(make_experiment(hooks=(Stop(due=True),)), tmp_path / "run")
    assert run.result["step"] == 5


def test_a_hook_stops_the_run_at_the_same_step_after_a_break(tmp_path):
    def outcome(experiment):
        """Its last step; or why it was refused, which does not depend on breaks either."""
        try:
            return jdl.train(experiment, tmp_path / "run").result["step"]
        except UserError as error:
            return str(error)

    experiment = make_experiment(hooks=(Stop(due=False),))
    whole = outcome(experiment)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(SystemExit):
        jdl.train(interrupt_at(experiment, 3, signal.SIGTERM), tmp_path / "run")
    assert outcome(experiment) == whole
    shutil.rmtree(tmp_path / "run")
    with contextlib.suppress(SystemExit, UserError):
        jdl.train(interrupt_at(experiment, 4, signal.SIGTERM), tmp_path / "run")
    assert outcome(experiment) == whole


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(plain, tmp_path, capsys):
    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 13), tmp_path / "run")
    assert kill_resume.checkpoints(tmp_path / "run") == [8, 12]
    victim = max((kill_resume.newest(tmp_path / "run") / "state" / "d").iterdir())
    victim.write_bytes(victim.read_bytes()[:-3])
    jdl.train(make_experiment(), tmp_path / "run")
    output = capsys.readouterr().out
    assert f"12.0 is damaged, trying the one before: state/d/{victim.name}" in output
    assert "resuming from step 8 of 14" in output
    assert kill_resume.differences(plain, tmp_path / "run") == []


EXPERIMENT = """
import time
from dataclasses import dataclass

from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.hooks import Checkpoint, Evaluate, Hook, Callback, Progress, RetraceWarning, TensorBoard
from jdl.models import MLP
from jdl.metrics import ConfusionMatrix, MacroF1
from jdl.optimizers import SGD
from jdl.parallel import Single


@dataclass(frozen=True, kw_only=True)
class Hold(Hook):
    def build(self, run):
        return Holding(run.workdir.parent / "hold")


class Holding(Callback):
    def __init__(self, path):
        self.path = path

    def __call__(self, event):
        while event.step == 100 and self.path.exists():  # a run to be killed does not end before
            time.sleep(0.01)


experiment = Experiment(
    model=MLP(widths=(), dropout_rate=0.2),
    data=Digits(device_transforms=(Scale(divisor=16.0),)),
    optimizer=SGD(0.1, momentum=0.9),
    strategy=Single(),
    hooks=(Progress(), TensorBoard(), Evaluate(every=50), Checkpoint(), RetraceWarning(),
           Hold()),
    steps=150,
)
"""


def test_killed_at_a_random_moment(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    job = kill_resume.Job(experiment=str(tmp_path / "small.py"), every=10)
    reference = kill_resume.train_reference(job, tmp_path / "reference")
    hold, kill = tmp_path / "hold", kill_resume.Process.kill
    hold.touch()

    def kill_and_let_go(process):
        kill(process)
        hold.unlink()

    monkeypatch.setattr(kill_resume.Process, "kill", kill_and_let_go)
    draw = random.Random("3 0")  # about half-way
    report = kill_resume.train_killed(job, tmp_path / "killed", reference, 1, draw)
    assert report.faults == []
    assert (report.kills, len(report.resumed)) == (1, 1)


def test_the_script_sees_what_differs(plain, tmp_path):
    other = make_experiment(seed=3)
    jdl.train(other, tmp_path / "other")
    found = " ".join(kill_resume.differences(plain, tmp_path / "other"))
    for part in ("params_sha256", "metrics.jsonl", "['params']['Dense_0']['kernel']", "['key']"):
        assert part in found
    assert "['step']" not in found
    report = kill_resume.Report(kills=1, resumed=[0], lost=[3], faults=[])
    assert kill_resume.summarise([report], 1) == [
        "only 0 of 1 restarts resumed from a step above 0"
    ]


@pytest.mark.slow
def test_digits_cnn_killed_at_random_moments(tmp_path):
    assert kill_resume.main(["--runs", "4", "--kills", "3", "--workdir", str(tmp_path)]) == 0
