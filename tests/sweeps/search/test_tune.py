"""A search finds its best trial, resumes after interruptions, and reports errors."""

import dataclasses
import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

import jdl
from jdl.config.overrides import override
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.hooks import Checkpoint, Evaluate
from jdl.models import MLP
from jdl.optimizers import SGD, Partition
from jdl.parallel import Single
from jdl.sweeps import jobs as jobs_module
from jdl.sweeps.search import Choice, Int, LogUniform, Uniform
from jdl.sweeps.vectorized import Stack
from jdl.tasks import Classification

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from jdl.sweeps.search import leases, worker  # noqa: E402 - they need it
from jdl.sweeps.search.samplers import quiet_optuna  # noqa: E402
from jdl.sweeps.search.study import open_storage  # noqa: E402

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 2, 96)
IMAGE = RNG.normal(size=(96, 3)) + LABEL[:, None]
SPACE = {"optimizer.learning_rate": LogUniform(1e-3, 1.0), "model.widths.0": Int(2, 6)}
BOOM = {"optimizer.learning_rate": Choice(0.1, 1e30)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guarded(Arrays):
    """Arrays whose test split must not be read."""

    def load(self):
        return {**super().load(), "test": Forbidden()}


class Forbidden:
    """A split that fails where it is read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("the test split was read")


def experiment(**changes):
    data = Guarded({"train": {"image": IMAGE, "label": LABEL}}, validation_fraction=0.25)
    settings = {
        "model": MLP(widths=(4,), features=2),
        "data": data,
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": (Evaluate(every=4), Checkpoint(every=4)),
        "steps": 12,
        "batch_size": 8,
    }
    return jdl.Experiment(**{**settings, **changes})


def tuned(workdir, space=SPACE, **options):
    lines = []
    options = {"sampler": "random", "trials": 3, **options}
    changes = options.pop("experiment", {})
    study = jdl.tune(experiment(**changes), space, workdir=workdir, notify=lines.append, **options)
    return study, lines


def values(study):
    return [(each.number, each.state, each.value, each.point) for each in study.trials]


def test_the_best_is_a_run_with_the_score_that_was_logged(tmp_path):
    study, lines = tuned(tmp_path / "study", metric="validation.loss")
    assert [each.number for each in study.trials] == [0, 1, 2]
    assert study.best.value == min(each.value for each in study.trials)
    assert len({each.value for each in study.trials}) == 3
    for each in study.trials:
        result = json.loads((tmp_path / f"study/trials/{each.number:04d}/result.json").read_text())
        assert set(result["metrics"]) == {"train", "validation"}
        assert result["metrics"]["validation"]["loss"] == each.value
    best = tmp_path / "study" / "best"
    run = jdl.open(best, jdl.override(experiment(), study.best.point))
    assert run.evaluate("validation")["loss"] == study.best.value
    rows = [json.loads(line) for line in (tmp_path / "study/study.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows] == [each.value for each in study.trials]
    assert f"best {study.best.value:.4f} in trial {study.best.number}" in lines[-1]
    assert "3 of 3 done" in lines[-1]


def test_the_rate_of_one_part_of_the_model_is_searched(tmp_path):
    parts = Partition(parts=(("Dense_0", SGD(0.1)), ("*", SGD(0.1))))
    path = "optimizer.parts.1.1.learning_rate"
    study, _ = tuned(
        tmp_path / "study",
        {path: LogUniform(1e-3, 1.0)},
        experiment={"optimizer": parts},
        trials=2,
        metric="validation.loss",
    )
    rates = [each.point[path] for each in study.trials]
    assert len({*rates, 0.1}) == 3
    assert len({each.value for each in study.trials}) == 2
    own = override(experiment(optimizer=parts), study.best.point)
    assert own.optimizer.parts == (parts.parts[0], ("*", SGD(study.best.point[path])))
    run = jdl.open(study.workdir / "best", own)
    assert run.evaluate("validation")["loss"] == study.best.value


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_broken_search_ends_as_one_that_never_was(sampler, tmp_path, monkeypatch):
    whole, _ = tuned(tmp_path / "whole", sampler=sampler, trials=4)
    train, calls = jobs_module.train, []

    class Killed(BaseException):
        pass

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 4):
            if len(calls) == 4:
                train(*args, **kwargs)  # it dies between its end and the telling of it
            raise Killed
        return train(*args, **kwargs)

    monkeypatch.setattr(jobs_module, "train", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            tuned(tmp_path / "broken", sampler=sampler, trials=4)
    broken, lines = tuned(tmp_path / "broken", sampler=sampler, trials=4)
    assert values(broken) == values(whole)
    assert lines[0] == "resuming a study of 2 trials"
    assert len(calls) == 5  # the one that had come to its end is not called up again
    again, _ = tuned(tmp_path / "broken", sampler=sampler, trials=4)
    assert (values(again), len(calls)) == (values(whole), 5)
    more, _ = tuned(tmp_path / "broken", sampler=sampler, trials=5)
    assert (len(more.trials), len(calls)) == (5, 6)


def test_a_grid_runs_each_point_once_and_a_finished_one_nothing(tmp_path, monkeypatch):
    space = {"model.widths.0": Int(2, 4), "optimizer.momentum": Uniform(0.0, 0.9, step=0.9)}
    constraints = [lambda point: point["model.widths.0"] != 3]
    options = {"sampler": "grid", "trials": None, "constraints": constraints}
    study, _ = tuned(tmp_path, space, **options)
    points = {tuple(each.point.values()) for each in study.trials}
    assert points == {(2, 0.0), (2, 0.9), (4, 0.0), (4, 0.9)}
    assert len(study.trials) == 4
    monkeypatch.setattr(jobs_module, "train", None)
    again, _ = tuned(tmp_path, space, **options)
    assert values(again) == values(study)
    assert (
        len(optuna.load_study(study_name="study", storage=open_storage(None, tmp_path)).trials) == 4
    )


def test_points_that_constraints_turn_down_are_not_trained(tmp_path, monkeypatch):
    constraints = [lambda point: point["model.widths.0"] < 4]
    study, _ = tuned(tmp_path, constraints=constraints, trials=4)
    assert len(study.trials) == 4
    assert all(each.point["model.widths.0"] < 4 for each in study.trials)
    monkeypatch.setattr(worker, "MAX_REJECTIONS", 20)
    with pytest.raises(UserError, match="20 consecutive points violated a constraint"):
        tuned(tmp_path / "none", constraints=[lambda point: False])


@pytest.mark.parametrize("options", [{}, {"vectorize": "always", "vectorized_trials": 6}])
def test_a_hopeless_trial_is_pruned(options, tmp_path):
    space = {"optimizer.learning_rate": Choice(0.3, 1e-9)}
    options = {"pruner": "median", "trials": 12, "metric": "validation.loss", **options}
    study, _ = tuned(tmp_path, space, **options)
    states = {(each.point["optimizer.learning_rate"], each.state) for each in study.trials}
    assert (0.3, "complete") in states
    assert (1e-9, "pruned") in states
    assert (0.3, "pruned") not in states
    pruned = next(each for each in study.trials if each.state == "pruned")
    result = json.loads((tmp_path / f"trials/{pruned.number:04d}/result.json").read_text())
    assert result["step"] < 12
    assert len(study.trials) == 12
    assert study.best.point == {"optimizer.learning_rate": 0.3}


def test_points_trained_together_have_the_scores_that_they_have_alone(tmp_path):
    space = {**SPACE, "optimizer.momentum": Choice(0.5, 0.9), "model.widths.0": Int(2, 3)}
    options = {"trials": 6, "metric": "validation.loss"}
    study, lines = tuned(tmp_path / "a", space, vectorize="always", vectorized_trials=4, **options)
    alone, _ = tuned(tmp_path / "b", space, **options)
    assert [each.point for each in study.trials] == [each.point for each in alone.trials]
    assert [e.value for e in study.trials] == pytest.approx([e.value for e in alone.trials])
    assert study.best.number == alone.best.number
    shared = [
        json.loads((tmp_path / f"a/trials/{number:04d}/environment.json").read_text())["devices"]
        for number in range(6)
    ]
    assert sum(each.get("vectorized_runs", 1) > 1 for each in shared) >= 4
    assert len([line for line in lines if line.startswith("trial")]) == 6


def test_a_group_that_was_killed_is_taken_up_again(tmp_path, monkeypatch):
    space = {"optimizer.learning_rate": LogUniform(1e-3, 1.0)}
    options = {"trials": 3, "vectorize": "always", "metric": "validation.loss"}
    whole, _ = tuned(tmp_path / "whole", space, **options)
    update, calls = Stack.update, []

    class Killed(BaseException):
        pass

    def dying(*args):
        calls.append(args)
        if len(calls) == 7:
            raise Killed
        return update(*args)

    monkeypatch.setattr(Stack, "update", dying)
    with pytest.raises(Killed):
        tuned(tmp_path / "broken", space, **options)
    broken, _ = tuned(tmp_path / "broken", space, **options)
    assert values(broken) == values(whole)
    assert len(calls) == 7 + 12 - 4  # on from the checkpoints of step 4


def test_a_failure_is_kept_and_the_search_goes_on(tmp_path):
    study, lines = tuned(tmp_path, BOOM, trials=4)
    failed = [each for each in study.trials if each.state == "failed"]
    assert failed
    assert all("not finite" in each.error for each in failed)
    assert sum(each.state == "complete" for each in study.trials) == 4
    assert any("failed" in line and "not finite" in line for line in lines)


def test_where_all_fail_the_first_failure_is_said_and_the_rest_counted(tmp_path):
    with pytest.raises(UserError, match=r"completed; the first failure: .*\(2 more failed\)"):
        tuned(tmp_path, {"optimizer.learning_rate": Choice(1e30)})
    assert len((tmp_path / "study.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "validation.acuracy"}, "there is no metric 'acuracy'.*did you mean 'accuracy'"),
        ({"metric": "valid.accuracy"}, "no split 'valid'"),
        ({"metric": "test.accuracy"}, "never reads the test split"),
        ({"metric": "accuracy"}, "a metric is SPLIT.NAME"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"sampler": "grid"}, "optimizer.learning_rate: .*has no step"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "cannot be reached"),
        ({"storage": "grpc://nowhere"}, "cannot be reached: .*write it as grpc://HOST:PORT"),
        ({"storage": "nosuch://a"}, "cannot be reached"),
    ],
)
def test_a_mistake_is_said_before_anything_is_trained(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tuned(tmp_path / "study", **options)
    assert not (tmp_path / "study" / "trials").exists()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renamed(Classification):
    """Has its accuracy under other names too."""

    def evaluate(self, model, state, batch):
        known = super().evaluate(model, state, batch)
        return {**known, "wer": known["accuracy"], "odd": known["accuracy"]}


@pytest.mark.parametrize(
    ("name", "mode", "direction"),
    [
        ("wer", None, "minimize"),
        ("wer", "max", "maximize"),
        ("nll", None, "minimize"),
        ("accuracy", "min", "minimize"),
        ("odd", "max", "maximize"),
    ],
)
def test_the_direction_is_the_metrics_unless_mode_overrides_it(name, mode, direction, tmp_path):
    options = {"metric": f"validation.{name}", "mode": mode, "trials": 2}
    study, _ = tuned(tmp_path, experiment={"task": Renamed(), "steps": 4}, **options)
    assert json.loads((tmp_path / "study.json").read_text())["direction"] == direction
    best = min if direction == "minimize" else max
    assert study.best.value == best(each.value for each in study.trials)


def test_a_metric_without_a_direction_needs_a_mode(tmp_path):
    message = "whether a higher validation.odd is better is unknown: set mode to min or max"
    with pytest.raises(UserError, match=re.escape(message)):
        tuned(tmp_path / "study", experiment={"task": Renamed()}, metric="validation.odd")
    assert not (tmp_path / "study" / "trials").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {"model.widths.0": Int(2, 9)}}, "space.model.widths.0: .*step"),
        ({"experiment": {"batch_size": 4}}, "fields.batch_size: 8 -> 4"),
        ({"sampler": "tpe"}, "sampler: random -> tpe"),
        ({"metric": "validation.loss"}, "metric: validation.accuracy -> validation.loss"),
    ],
)
def test_a_study_of_something_else_is_refused(options, message, tmp_path, monkeypatch):
    space = {"model.widths.0": Int(2, 6)}
    study, _ = tuned(tmp_path, space, trials=1)
    with pytest.raises(UserError, match=f"holds another study 'study' .*{message}"):
        tuned(tmp_path, **{"space": space, "trials": 1, **options})
    again, _ = tuned(tmp_path, space, trials=1)
    assert values(again) == values(study)


def test_a_trial_is_held_by_one_worker_and_freed_by_its_end(tmp_path):
    study = optuna.create_study(storage=open_storage(None, tmp_path))
    one, other = (leases.TrialLeases(study, study._storage, tmp_path) for _ in range(2))
    trial = study.ask()
    held = one.acquire(trial.number, trial._trial_id)
    (found,) = study.trials
    assert other.take_over(found) is None
    held.release()
    taken = other.take_over(found)
    assert taken is not None
    taken.release()


@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_of_several_that_see_a_stopped_heart_one_takes_the_trial_over(url, tmp_path, monkeypatch):
    storage = open_storage(url and url.format(tmp_path), tmp_path)
    study = optuna.create_study(storage=storage)
    places = [tmp_path / name for name in "abc"]
    dead, *others = (leases.TrialLeases(study, storage, place) for place in places)
    with quiet_optuna():
        trial = study.ask()
    held = dead.acquire(trial.number, trial._trial_id)
    held.release()  # its beats end, its trial does not
    (found,) = study.trials
    assert [each.take_over(found) for each in others] == [None, None]
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 3600)
    monkeypatch.setattr(leases, "time", clock)  # an hour passes
    taken = [each.take_over(found) for each in others]
    assert sum(lease is not None for lease in taken) == 1
    for lease in taken:
        if lease:
            lease.release()
