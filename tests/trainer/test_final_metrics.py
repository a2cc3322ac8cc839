"""The training split in `result.json`: evaluated in memory, else its running metrics."""

import json

import numpy as np
import pytest

import jdl
from jdl.cli.train import print_result
from jdl.data import Arrays
from jdl.hooks import Checkpoint
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.report.run_report import scores
from jdl.trainer.run import Run

COUNT, SIZE = 23, 6  # the last epoch is steps 5 to 8: step 4 begins in the one before


def experiment(pipeline, **options):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(COUNT + 8, 6)).astype(np.float32)
    arrays = {"image": image, "label": (image[:, 0] > 0).astype(np.int32)}
    return jdl.Experiment(
        model=MLP(widths=(4,), features=2),
        data=Arrays(
            {
                "train": {name: array[:COUNT] for name, array in arrays.items()},
                "validation": {name: array[COUNT:] for name, array in arrays.items()},
            },
            pipeline=pipeline,
            test_fraction=0.0,
        ),
        optimizer=SGD(0.1),
        hooks=(Checkpoint(),),
        epochs=2,
        batch_size=SIZE,
        runtime=jdl.Runtime(log_every=1),
        **options,
    )


@pytest.fixture
def scored(monkeypatch):
    """The splits that are evaluated, in order."""
    splits, score = [], Run.evaluate_with_host_metrics

    def record(self, split="test", *args):
        splits.append(split)
        return score(self, split, *args)

    monkeypatch.setattr(Run, "evaluate_with_host_metrics", record)
    return splits


@pytest.mark.parametrize(("pipeline", "wanted"), [("in_memory", None), ("grain", True)])
def test_the_training_split_is_evaluated(pipeline, wanted, scored, tmp_path):
    run = jdl.train(experiment(pipeline, final_train_evaluation=wanted), tmp_path / "run")
    assert scored == ["train", "validation"]
    assert run.result["train_metrics"] == "evaluated"
    assert run.result["metrics"]["train"] == run.evaluate("train")
    assert "running mean" not in str(scores(run, [], []))


@pytest.mark.parametrize(("pipeline", "wanted"), [("grain", None), ("in_memory", False)])
def test_running_metrics_of_the_last_epoch_stand_for_it(pipeline, wanted, scored, tmp_path, capsys):
    run = jdl.train(experiment(pipeline, final_train_evaluation=wanted), tmp_path / "run")
    assert scored == ["validation"]
    assert run.result["train_metrics"] == "running"
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [row["metrics"] for row in map(json.loads, lines) if row["split"] == "train"]
    for name in ("loss", "accuracy"):
        mean = np.mean([row[name] for row in rows[4:]])
        assert run.result["metrics"]["train"][name] == pytest.approx(mean, rel=1e-6)
    assert run.result["metrics"]["train"].keys() == run.evaluate("train").keys()
    capsys.readouterr()
    print_result(run, run.workdir)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "running mean" in line] == ["train"]
    assert "running mean" in str(scores(run, [], []))


def test_a_run_resumed_after_its_last_step_has_the_same_metrics(tmp_path):
    result = jdl.train(experiment("grain"), tmp_path / "run").result
    (tmp_path / "run/result.json").unlink()
    assert jdl.train(experiment("grain"), tmp_path / "run").result["metrics"] == result["metrics"]
