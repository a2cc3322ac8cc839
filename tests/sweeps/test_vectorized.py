"""Vectorized runs equal single runs: losses, scores, directories, endings."""

import dataclasses
import json
import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import optimizers
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate
from jdl.layers import Dropout
from jdl.models import CNN, MLP
from jdl.optimizers import SGD, Adam, AdamW
from jdl.parallel import DataParallel, Pmap, Single
from jdl.sweeps import jobs as jobs_module
from jdl.sweeps.jobs import Job, compile_vectorized, train_jobs
from jdl.sweeps.seeds import train_seeds
from jdl.tasks import Classification
from jdl.trainer.interrupt import Interrupted
from jdl.trainer.training_run import TrainingRun
from tests.interruptions import InterruptAt, Net

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, 80)
IMAGE = (RNG.normal(size=(80, 4, 4, 1)) + LABEL[:, None, None, None]).astype(np.float32)
DATA = Arrays({"train": {"image": IMAGE, "label": LABEL}})
STREAMED = dataclasses.replace(DATA, pipeline="grain")
POINTS = [
    {"seed": 0, "optimizer.learning_rate": 0.1, "model.dropout_rate": 0.0, "optimizer.l2": 0.01},
    {
        "seed": 1,
        "optimizer.learning_rate": 0.02,
        "model.dropout_rate": 0.3,
        "optimizer.momentum": 0.5,
    },
    {"seed": 2, "task.label_smoothing": 0.1, "optimizer.weight_decay": 0.1},
]


def experiment(**changes):
    settings = {
        "model": MLP(widths=(8,), features=3, dropout_rate=0.1),
        "data": DATA,
        "optimizer": SGD(0.05, momentum=0.9),
        "strategy": Single(),
        "hooks": (Evaluate(every=10), Checkpoint(every=10)),
        "steps": 20,
        "batch_size": 8,
        "runtime": jdl.Runtime(log_every=1),
    }
    return jdl.Experiment(**{**settings, **changes})


def trained(workdir, points, vectorize="always", breaks=None, **changes):
    """The outcomes of runs at some points of an experiment, and the printed lines."""
    lines, outcomes = [], {}
    jobs = [
        Job(
            experiment=jdl.override(experiment(**changes), point),
            workdir=workdir / str(place),
            hooks=(breaks,) if breaks and place == 1 else (),
        )
        for place, point in enumerate(points)
    ]

    def tell(place, outcome):
        outcomes[place] = outcome
        return True

    train_jobs(jobs, vectorize, tell, notify=lines.append)
    return [outcomes[place] for place in range(len(points))], lines


def rows(workdir, split="train"):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["metrics"] for row in found if row["split"] == split]


def newest(workdir):
    """The step of the newest checkpoint."""
    return max(int(each.name.split(".")[0]) for each in (workdir / "checkpoints").iterdir())


def losses(workdir):
    return np.array([row["loss"] for row in rows(workdir)])


def within_one_example(run, other):
    for split, metrics in run.result["metrics"].items():
        one = 1 / run.data.count(split)
        found = other.result["metrics"][split]
        assert abs(metrics["accuracy"] - found["accuracy"]) < 1.01 * one
        assert metrics["loss"] == pytest.approx(found["loss"], abs=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs of 100 steps, each by itself."""
    workdir = tmp_path_factory.mktemp("alone")
    return workdir, trained(workdir, POINTS, "never", steps=100)[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs that were trained together without a break."""
    workdir = tmp_path_factory.mktemp("plain")
    return workdir, trained(workdir, POINTS)[0]


@pytest.mark.parametrize("strategy", [Single(), DataParallel()], ids=["one device", "two devices"])
def test_losses_and_scores_are_those_of_runs_alone(strategy, alone, tmp_path):
    runs, lines = trained(tmp_path, POINTS, steps=100, strategy=strategy)
    workdir, expected = alone
    for place, (run, other) in enumerate(zip(runs, expected, strict=True)):
        found, wanted = losses(tmp_path / str(place)), losses(workdir / str(place))
        assert len(found) == 100
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        within_one_example(run, other)
    assert len({tuple(losses(tmp_path / str(place)).tolist()) for place in range(3)}) == 3
    assert lines == []


def test_a_member_has_the_directory_of_a_run_alone_and_goes_on_alone(alone, plain, tmp_path):
    ours, theirs = ({f.name for f in (d / "1").iterdir()} for d in (plain[0], alone[0]))
    assert ours == theirs
    shutil.copytree(plain[0] / "1", tmp_path / "1")
    environment = json.loads((tmp_path / "1/environment.json").read_text())
    assert environment["devices"]["vectorized_runs"] == 3
    jdl.train(jdl.override(experiment(steps=40), POINTS[1]), tmp_path / "1")
    np.testing.assert_allclose(losses(tmp_path / "1"), losses(alone[0] / "1")[:40], atol=1e-5)


@pytest.mark.parametrize(
    ("seeds", "changes"),
    [
        ((0, 0), {"runtime": jdl.Runtime(steps_per_execution=5, log_every=5)}),
        ((0, 1), {"data": STREAMED, "model": CNN(channels=(2,), dense=(4,), num_classes=3)}),
        ((0, 1), {"optimizer": AdamW(0.01, ema_decay=0.9, schedule=optimizers.Cosine(warmup=0.1))}),
        ((0, 0), {"precision": "bf16", "num_microbatches": 2}),
    ],
    ids=["several steps a call", "convolution, streamed", "schedule and average", "bf16"],
)
def test_whatever_the_experiment_members_are_as_alone(seeds, changes, tmp_path):
    points = [
        {"seed": seed, "optimizer.learning_rate": rate}
        for seed, rate in zip(seeds, (0.01, 0.02), strict=True)
    ]
    runs, others = (
        trained(tmp_path / way, points, way, **changes)[0] for way in ("always", "never")
    )
    for place, (run, other) in enumerate(zip(runs, others, strict=True)):
        found, wanted = (losses(tmp_path / way / str(place)) for way in ("always", "never"))
        close = 2e-2 if "precision" in changes else 1e-5
        np.testing.assert_allclose(found, wanted, atol=close)
        if "precision" not in changes:
            within_one_example(run, other)


def test_interrupted_together_all_save_and_go_on_together(plain, tmp_path):
    with pytest.raises(Interrupted):
        trained(tmp_path / "broken", POINTS, breaks=InterruptAt(at=13, how=signal.SIGTERM))
    saved = [newest(tmp_path / "broken" / str(place)) for place in range(3)]
    assert saved[0] == saved[1] == saved[2]
    assert 13 <= saved[0] < 20
    again, _ = trained(tmp_path / "broken", POINTS)
    for place, (run, other) in enumerate(zip(again, plain[1], strict=True)):
        assert run.result["params_sha256"] == other.result["params_sha256"]
        assert rows(tmp_path / "broken" / str(place)) == rows(plain[0] / str(place))


def test_one_that_was_left_behind_is_brought_to_the_others(plain, tmp_path):
    with pytest.raises(Interrupted):
        trained(tmp_path / "broken", POINTS, breaks=InterruptAt(at=13, how=signal.SIGTERM))
    for newer in (tmp_path / "broken" / "1" / "checkpoints").glob("1[1-9].*"):
        shutil.rmtree(newer)
    again, _ = trained(tmp_path / "broken", POINTS)
    np.testing.assert_allclose(losses(tmp_path / "broken" / "1"), losses(plain[0] / "1"), atol=1e-5)
    for place in (0, 2):
        within_one_example(again[place], plain[1][place])


def test_members_that_fail_or_stop_leave_the_others_be(tmp_path):
    stop = EarlyStopping(metric="validation.loss", patience=1, min_delta=1e-3)
    rates = (0.05, 1e30, 1e-7, 0.02)
    points = [{"optimizer.learning_rate": rate} for rate in rates]
    changes = {"hooks": (Evaluate(every=5), stop, Checkpoint(every=5)), "stop_after_skipped": 3}
    runs, _ = trained(tmp_path / "always", points, **changes)
    others, _ = trained(tmp_path / "never", points, "never", **changes)
    assert str(runs[1]) == str(others[1])
    assert "not finite" in str(runs[1])
    assert runs[2].result["step"] == 10
    for place in (0, 2, 3):
        assert others[place].result["step"] == runs[place].result["step"]
        within_one_example(runs[place], others[place])
        found, wanted = (rows(tmp_path / w / str(place), "validation") for w in ("always", "never"))
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted])
    assert "update of 2" in runs[0].result["traces"]


def test_runs_of_other_architectures_are_trained_apart(tmp_path):
    points = [
        {"optimizer.momentum": 0.9},
        {"model.widths": (4,)},
        {"optimizer.momentum": 0.0},
        {"optimizer.momentum": 0.8},
    ]
    runs, _ = trained(tmp_path, points, steps=2)
    traced = [
        json.loads((tmp_path / str(place) / "environment.json").read_text())["devices"]
        for place in range(4)
    ]
    assert [each.get("vectorized_runs") for each in traced] == [2, None, None, 2]
    assert all(run.result["step"] == 2 for run in runs)


@pytest.mark.parametrize(
    ("changes", "point", "message"),
    [
        (
            {"model": Net()},
            {"model.dropout_rate": 0.5},
            r"^model.dropout_rate cannot .*\(.*\.py, line \d+",
        ),
        ({}, {"optimizer.schedule.warmup": 0.5}, "^optimizer.schedule.warmup cannot be vectorized"),
        ({"strategy": Pmap()}, {"seed": 1}, "^the strategy pmap cannot be vectorized"),
    ],
)
def test_what_cannot_be_vectorized_is_named_and_auto_does_without(
    changes, point, message, tmp_path
):
    points = [{}, point]
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "always", points, steps=2, **changes)
    assert not (tmp_path / "always").exists()
    runs, (line,) = trained(tmp_path / "auto", points, "auto", steps=2, **changes)
    assert "trained sequentially: " in line
    assert all(run.result["step"] == 2 for run in runs)


@pytest.mark.parametrize(
    ("rates", "way"), [((3.0, 2.0), "vectorized"), ((2.0, 3.0), "sequentially")]
)
def test_auto_takes_the_faster_way_and_says_so(rates, way, tmp_path, monkeypatch):
    measure, measured = jobs_module._benchmark, []

    def known(*args):
        measured.append(measure(*args))
        return rates

    monkeypatch.setattr(jobs_module, "_benchmark", known)
    monkeypatch.setattr(jobs_module, "BENCHMARK_SECONDS", 0.0)
    _, (line,) = trained(tmp_path, [{"seed": 0}, {"seed": 1}], "auto", steps=2)
    assert f"2 runs are trained {way}" in line
    environment = json.loads((tmp_path / "0/environment.json").read_text())
    assert ("vectorized_runs" in environment["devices"]) == (way == "vectorized")
    assert len(measured) == 1


def test_seeds_together_are_summed_up_as_ever(tmp_path):
    one = experiment(steps=10)
    ours, theirs = (
        train_seeds(one, 3, tmp_path / way, vectorize=way) for way in ("always", "never")
    )
    assert ours["seeds"] == theirs["seeds"] == [0, 1, 2]
    for split, metrics in theirs["metrics"].items():
        for name, spread in metrics.items():
            assert ours["metrics"][split][name] == pytest.approx(spread, abs=1e-4)
    assert (tmp_path / "always" / "seed-2" / "result.json").exists()


OPTIMIZERS = ("Adagrad", "AdamW", "Lamb", "Lion", "Muon", "RMSprop")
SCHEDULES = ("Cosine", "Exponential", "Linear", "OneCycle", "Step")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rate_and_decay_of_any_optimizer_may_differ(name, tmp_path):
    first = experiment(optimizer=getattr(optimizers, name)(0.01, clip_norm=1.0, clip_value=1.0))
    names = ("learning_rate", "weight_decay", "clip_norm", "clip_value", "l2")
    other = jdl.override(first, {f"optimizer.{name}": 0.5 for name in names})
    assert compile_vectorized(TrainingRun(first, "", tmp_path), [first, other])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_under_any_schedule_may_differ(name, tmp_path):
    first = experiment(optimizer=Adam(0.01, schedule=getattr(optimizers, name)()))
    other = jdl.override(first, {"optimizer.learning_rate": 0.02})
    assert compile_vectorized(TrainingRun(first, "", tmp_path), [first, other])


class Dropped(nn.Module):
    """Two layers of dropout, of one library or the other."""

    kind: type
    rates: tuple

    @nn.compact
    def __call__(self, x):
        for rate in self.rates:
            x = self.kind(rate, deterministic=False)(jnp.sin(x))
        return x


def drop(kind, rates, x):
    def total(x):
        # In both they are called Dropout_0 and Dropout_1, by which their masks are drawn.
        found = Dropped(kind, rates).apply({}, x, rngs={"dropout": jax.random.key(3)})
        return jnp.sum(found**2), found

    return jax.grad(total, has_aux=True)(x)


@pytest.mark.parametrize("rates", [(0.0, 0.3), (0.5, 1.0)])
def test_dropout_is_that_of_flax_bit_for_bit_also_where_its_rate_is_an_array(rates):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 7)), jnp.float32)
    expected = drop(nn.Dropout, rates, x)
    np.testing.assert_array_equal(drop(Dropout, rates, x), expected)
    traced = jax.vmap(lambda *rates: drop(Dropout, rates, x))(*jnp.asarray([rates, (0.9, 0.9)]).T)
    for found, wanted in zip(traced, expected, strict=True):
        np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, deterministic=True), x)


def test_smoothed_losses_of_no_share_are_those_of_no_smoothing():
    logits = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    batch = {"label": jnp.asarray(LABEL[:6]), "mask": jnp.ones(6, bool)}
    traced = jax.jit(lambda share: Classification()._cross_entropy(logits, batch, share))(0.0)
    np.testing.assert_allclose(traced, Classification()._cross_entropy(logits, batch, 0.0), 1e-6)


def test_one_run_has_nothing_to_be_trained_together_with(command):
    code, _, complaint = command("train", "digits_mlp", "--vectorize", "always")
    assert code != 0
    assert "set their number by --seeds" in complaint
