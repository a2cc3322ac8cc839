"""A run that was broken off anywhere ends, bit for bit, as one that never was."""

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment, UserError
from jdl.data import Arrays, Data, RandomCrop, Scale
from jdl.data.arrays import ArraySource
from jdl.data.base import Source
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate, Hook, Listener
from jdl.metrics import Mean
from jdl.optimizers import SGD, Adam, Constant, Cosine, ReduceOnPlateau
from jdl.parallel import DataParallel, Single
from jdl.tasks import Classification


def load_script():
    path = Path(__file__).with_name("kill_resume.py")
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


kill_resume = load_script()


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same programs are compiled again and again here: their executables are kept."""
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Net(nn.Module):
    """Dropout and, where asked for, batch statistics; random numbers would be slow to compile."""

    normed: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if self.normed:
            x = nn.Dense(4, kernel_init=nn.initializers.constant(0.1))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x)


@dataclass(frozen=True, kw_only=True)
class Scored(Classification):
    """Classification with a second score that is known beforehand: a number for every step."""

    scores: tuple[float, ...] = ()

    def evaluate(self, model, state, batch):
        known = super().evaluate(model, state, batch)
        if not self.scores:
            return known
        score = jnp.asarray(self.scores, jnp.float32)[state.step]
        return {**known, "score": Mean.of(score + jnp.zeros(len(batch["mask"])), batch["mask"])}


class Killed(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Break(Hook):
    """Ends the run when it is told of a step: by an exception, or by a signal."""

    at: int = 0
    how: Any = "raise"
    due: bool = False

    def build(self, run):
        return _Break(self)


class _Break(Listener):
    def __init__(self, config):
        self._config = config

    def due(self, step):
        return self._config.due and step == self._config.at

    def __call__(self, event):
        if event.step == self._config.at:
            if self._config.how == "raise":
                raise Killed
            os.kill(os.getpid(), self._config.how)


def make_arrays(seed=0):
    values = np.random.default_rng(seed)
    images = values.integers(0, 17, (44, 4, 4, 1)).astype(np.uint8)
    return {"image": images, "label": (images.sum((1, 2, 3)) % 3).astype(np.int32)}


def make_experiment(**changes):
    """14 batches of 8 out of 32 examples, scored every 3 and saved every 4 steps."""
    data = Arrays({"train": make_arrays()}, device_transforms=(Scale(divisor=16.0),))
    hooks = changes.pop("hooks", (Evaluate(every=3), Checkpoint(every=4)))
    settings: dict[str, Any] = {
        "model": Net(),
        "task": Scored(),
        "data": dataclasses.replace(data, **changes.pop("data", {})),
        "optimizer": SGD(0.1, momentum=0.9),
        "strategy": Single(),
        "hooks": (Break(), *hooks, Break()),
        "steps": 14,
        "batch_size": 8,
        "log_every": 5,
        **changes,
    }
    return Experiment(**settings)


def broken(experiment, at, how: Any = "raise", first=False, due=False):
    """The same experiment with a break before or after the other hooks."""
    end, rest = Break(at=at, how=how, due=due), experiment.hooks
    hooks = (end, *rest[1:]) if first else (*rest[:-1], end)
    return dataclasses.replace(experiment, hooks=hooks)


def train_broken(experiment, workdir, *breaks, **options):
    """Trains with breaks at the given steps, by exception and by signal in turn, to the end."""
    for i, at in enumerate(breaks):
        if i % 2:
            with pytest.raises(SystemExit) as ended:
                jdl.train(broken(experiment, at, signal.SIGTERM, **options), workdir)
            assert ended.value.code == 75
        else:
            with pytest.raises(Killed):
                jdl.train(broken(experiment, at, **options), workdir)
    return jdl.train(experiment, workdir)


def steps_saved(workdir):
    return kill_resume.checkpoints(workdir)


SCORES = tuple([9.0] * 3 + [5.0] * 3 + [3.0] * 3 + [4.0] * 6)  # best of the evaluations: step 6

CASES = {
    "dropout, batch statistics and augmentation": {
        "model": Net(normed=True, dropout=0.3),
        "data": {"device_transforms": (RandomCrop(padding=1), Scale(divisor=16.0))},
    },
    "averaged weights and early stopping": {
        "task": Scored(scores=SCORES),
        "optimizer": Adam(0.01, average=0.9, schedule=Cosine(warmup=0.2)),
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
    "steps per dispatch and accumulation": {
        "steps_per_dispatch": 3,
        "accumulate": 2,
        "hooks": (Evaluate(every=6), Checkpoint(every=6)),
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The plain run, never stopped."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    jdl.train(make_experiment(), workdir)
    return workdir


@pytest.mark.parametrize("case", CASES)  # saved at 4 or 6, broken off at 7, saved again near 9
def test_a_broken_run_ends_as_one_that_never_was(case, tmp_path):
    experiment = make_experiment(**CASES[case])
    run = jdl.train(experiment, tmp_path / "whole")
    again = train_broken(experiment, tmp_path / "broken", 7, 9)
    assert kill_resume.differences(tmp_path / "whole", tmp_path / "broken") == []
    assert again.result["metrics"] == run.result["metrics"]
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
        jdl.train(broken(experiment, at, signal.SIGINT), tmp_path / "run")
    assert ended.value.code == 75
    assert at <= steps_saved(tmp_path / "run")[-1] <= at + 1
    jdl.train(experiment, tmp_path / "run")
    assert kill_resume.differences(plain, tmp_path / "run") == []


@dataclass(frozen=True, kw_only=True)
class Seen(Hook):
    """Keeps what hooks are told of each step."""

    steps: Any = dataclasses.field(default_factory=dict)

    def build(self, run):
        return _Seen(self.steps)


class _Seen(Listener):
    def __init__(self, steps):
        self._steps = steps

    def __call__(self, event):
        values = {name: metric.compute() for name, metric in event.metrics.items()}
        self._steps[event.step] = (event.epoch, values)


@dataclass(frozen=True, kw_only=True)
class Listing(Hook):
    """Keeps the steps that it was told of, in a list that it gives away as its state."""

    def build(self, run):
        return _Listing()


class _Listing(Listener):
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
    [{}, {"accumulate": 2, "hooks": (Listing(), Evaluate(every=3), Checkpoint(every=4))}],
)
def test_an_event_that_an_evaluation_was_cut_short_in_is_delivered_again(changes, plain, tmp_path):
    experiment = make_experiment(**changes)
    with pytest.raises(SystemExit):
        jdl.train(broken(experiment, 12, signal.SIGTERM, True, True), tmp_path / "run")
    newest = kill_resume.newest(tmp_path / "run")
    assert json.loads((newest / "meta.json").read_text())["pending"] is not None
    assert steps_saved(tmp_path / "run")[-1] == 12
    rows = kill_resume.rows(tmp_path / "run")
    assert (12, "validation") not in [(row["step"], row["split"]) for row in rows]
    jdl.train(experiment, tmp_path / "run")
    if changes:
        plain = tmp_path / "whole"
        jdl.train(experiment, plain)
    assert kill_resume.differences(plain, tmp_path / "run") == []


def test_hooks_are_told_the_same_after_a_break(tmp_path):
    def make(seen, at=0):
        hooks = (Break(at=at, how=signal.SIGTERM, due=True), Evaluate(every=3), seen)
        # Sums over 7 examples: their means show whether they were kept in float32.
        return dataclasses.replace(make_experiment(), hooks=hooks, batch_size=7)

    whole, told = Seen(), Seen()
    jdl.train(make(whole), tmp_path / "whole")
    with pytest.raises(SystemExit):
        jdl.train(make(told, 6), tmp_path / "run")
    jdl.train(make(told), tmp_path / "run")
    assert told.steps == whole.steps


@dataclass(frozen=True, kw_only=True)
class Stop(Hook):
    """Ends the run at step 5, in a way that is due there or not."""

    due: bool

    def build(self, run):
        return _Stop(run, self.due)


class _Stop(Listener):
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
        jdl.train(broken(experiment, 3, signal.SIGTERM), tmp_path / "run")
    assert outcome(experiment) == whole
    shutil.rmtree(tmp_path / "run")
    with contextlib.suppress(SystemExit, UserError):
        jdl.train(broken(experiment, 4, signal.SIGTERM), tmp_path / "run")
    assert outcome(experiment) == whole


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
        ({"log_every": 3}, "log_every: 5 -> 3"),
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


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(plain, tmp_path, capsys):
    with pytest.raises(Killed):
        jdl.train(broken(make_experiment(), 13), tmp_path / "run")
    assert steps_saved(tmp_path / "run") == [8, 12]
    victim = max((kill_resume.newest(tmp_path / "run") / "state" / "d").iterdir())
    victim.write_bytes(victim.read_bytes()[:-3])
    jdl.train(make_experiment(), tmp_path / "run")
    said = capsys.readouterr().out
    assert f"12.0 is damaged, trying the one before: state/d/{victim.name}" in said
    assert "going on from step 8 of 14" in said
    assert kill_resume.differences(plain, tmp_path / "run") == []


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


EXPERIMENT = """
from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.hooks import Checkpoint, Evaluate, Progress, RetraceWarning, TensorBoard
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Single

experiment = Experiment(
    model=MLP(widths=(), dropout=0.2),
    data=Digits(device_transforms=(Scale(divisor=16.0),)),
    optimizer=SGD(0.1, momentum=0.9),
    strategy=Single(),
    hooks=(Progress(), TensorBoard(), Evaluate(every=50), Checkpoint(), RetraceWarning()),
    steps=300,
)
"""


def test_killed_at_random_moments(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    (tmp_path / "small.py").write_text(EXPERIMENT)
    words = ["--experiment", str(tmp_path / "small.py"), "--every", "10", "--seed", "3"]
    code = kill_resume.main([*words, "--runs", "1", "--kills", "1", "--workdir", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "1 of 1 equal" in said


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
