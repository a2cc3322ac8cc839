"""Runs from the command line: contents of the run directory, resuming and refusals."""

import hashlib
import json
import os
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jdl
from tests.experiment_source import CHANGES, FLAGS, SOURCE, contents, read


def test_what_a_run_directory_holds(trained, clouds):
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    (events,) = [name for name in names if "tfevents" in name]
    assert names - {events} == {
        "experiment.py",
        "overrides.json",
        "experiment.json",
        "environment.json",
        "data.json",
        "objects.json",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
    }
    assert (trained / "experiment.py").read_bytes() == clouds.read_bytes()
    assert read(trained / "overrides.json") == CHANGES
    recorded = read(trained / "experiment.json")
    assert recorded["experiment"] == "clouds"
    resolved = {
        "optimizer": "sgd",
        "optimizer.learning_rate": 0.1,
        "hooks.2.every": 3,
        "model.widths": [4, 3],
        "model.features": 2,
        "steps": 6,
        "epochs": None,
        "strategy": "data_parallel",
        "hooks.3": "checkpoint",
    }
    assert {path: recorded["fields"][path] for path in resolved} == resolved
    assert list((trained / "checkpoints").iterdir())


def test_what_environment_json_says(trained):
    environment = read(trained / "environment.json")
    assert set(environment) == {"versions", "git_commit", "devices", "flags", "data"}
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["jdl"] == jdl.__version__
    assert {"python", "jaxlib", "flax", "optax", "numpy"} <= set(environment["versions"])
    assert environment["devices"]["count"] == 2
    assert environment["flags"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    data = environment["data"]
    assert {name: part["count"] for name, part in data.items()} == {
        "train": 58,
        "validation": 6,
        "test": 16,
    }
    for part in data.values():
        assert set(part) == {"source", "version", "count", "sha256"}
        assert part["source"] == "arrays"
        assert len(part["sha256"]) == 64


def test_what_metrics_jsonl_says(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row) == {"step", "epoch", "split", "metrics", "timing"} for row in rows)
    assert [(row["step"], row["split"]) for row in rows] == [
        (2, "train"),
        (3, "validation"),
        (4, "train"),
        (6, "train"),
        (6, "validation"),
    ]
    for row in rows:
        assert set(row["metrics"]) == {"loss", "nll", "accuracy"}
        assert 0 <= row["metrics"]["accuracy"] <= 1
        assert row["epoch"] == pytest.approx(row["step"] * 8 / 58, abs=1e-6)
        assert all(isinstance(value, (int, float)) for value in row["timing"].values())


def test_what_result_json_says(trained):
    result = read(trained / "result.json")
    assert list(result) == [
        "experiment",
        "step",
        "metrics",
        "train_metrics",
        "params_sha256",
        "seconds",
        "compile_seconds",
        "input_seconds",
        "items_per_second",
        "traces",
        "peak_bytes",
        "parameters",
        "device",
        "versions",
    ]
    assert (result["experiment"], result["step"]) == ("clouds", 6)
    assert list(result["metrics"]) == ["train", "validation", "test"]
    assert all(set(scores) == {"loss", "nll", "accuracy"} for scores in result["metrics"].values())
    assert 0 < result["compile_seconds"] < result["seconds"]
    assert 0 <= result["input_seconds"] < result["seconds"]
    assert result["items_per_second"] > 0
    assert result["traces"]["update"] == 1
    assert result["peak_bytes"] > 2**20
    assert result["parameters"] == 3 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2
    assert result["versions"] == read(trained / "environment.json")["versions"]


def test_params_sha256_is_what_it_is_said_to_be(trained):
    file = jdl.load(trained / "experiment.py")
    run = jdl.open(trained, jdl.override(file.experiment, CHANGES))
    digest = hashlib.sha256()
    leaves = flatten_dict(run.state.params, sep=".")
    assert len(leaves) == 6
    for path in sorted(leaves):
        array = np.asarray(leaves[path])
        digest.update(f"{path} float32 {list(array.shape)} ".encode())
        digest.update(array.astype("<f4").tobytes(order="C"))
    assert read(trained / "result.json")["params_sha256"] == digest.hexdigest()


def test_the_metrics_are_those_of_all_examples(trained, clouds):
    file = jdl.load(clouds)
    experiment = jdl.override(file.experiment, CHANGES)
    run = jdl.open(trained, experiment)
    result = read(trained / "result.json")["metrics"]
    for name, source in experiment.data.splits().items():
        examples = [source[index] for index in range(len(source))]
        labels = np.array([example["label"] for example in examples])
        chances = run.predict(np.stack([example["image"] for example in examples]))
        right = chances[np.arange(len(labels)), labels]
        assert result[name]["accuracy"] == pytest.approx((chances.argmax(1) == labels).mean())
        assert result[name]["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)


def test_evaluate_gives_what_result_json_holds(command, trained):
    before = contents(trained)
    for split, scores in read(trained / "result.json")["metrics"].items():
        code, out, err = command("evaluate", trained, "--split", split)
        assert (code, err) == (0, "")
        assert json.loads(out) == {"split": split, **scores}
    assert json.loads(command("evaluate", trained)[1])["split"] == "test"
    code, out, err = command("evaluate", trained, "--split", "tset")
    assert (code, out) == (2, "")
    assert "no split 'tset'" in err
    assert "did you mean 'test'" in err
    assert contents(trained) == before


def test_a_file_of_one_s_own_is_used_instead(command, trained, tmp_path):
    copy = tmp_path / "copy"
    for name, content in contents(trained).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    (copy / "experiment.py").write_text("raise RuntimeError('this was run')\n")
    (tmp_path / "mine.py").write_text(SOURCE)
    code, out, err = command("evaluate", copy)
    assert (code, out) == (2, "")
    assert "experiment.py, line 1: RuntimeError: this was run" in err
    code, out, _ = command("evaluate", copy, "--experiment", tmp_path / "mine.py")
    assert code == 0
    assert json.loads(out)["loss"] == read(trained / "result.json")["metrics"]["test"]["loss"]
    (tmp_path / "mine.py").write_text(SOURCE.replace("batch_size=8", "batch_size=10"))
    code, _, err = command("evaluate", copy, "--experiment", tmp_path / "mine.py")
    assert code == 2
    assert "batch_size: 8 -> 10" in err


def test_a_directory_is_named_for_experiment_and_date(command, clouds, tmp_path, trained):
    code, out, _ = command("train", clouds, *FLAGS)
    assert code == 0
    (workdir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"clouds-\d{8}-\d{6}", workdir.name)
    assert f"runs/{workdir.name} holds the run" in out
    again, first = read(workdir / "result.json"), read(trained / "result.json")
    assert again["params_sha256"] == first["params_sha256"]


def test_a_finished_run_is_left_as_it_is(command, clouds, trained):
    before = contents(trained)
    code, out, _ = command("train", clouds, "--workdir", trained, *FLAGS)
    assert code == 0
    assert f"{trained} holds the run" in out
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([*FLAGS, "--seed", "5"], "seed: 0 -> 5"),
        ([*FLAGS, "--steps", "5"], "not shrink to 5"),
        (FLAGS[:-3], "model.widths: [4, 3] -> [5]"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(command, clouds, trained, flags, complaint):
    before = contents(trained)
    code, _, err = command("train", clouds, "--workdir", trained, *flags)
    assert code == 2
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert contents(trained) == before


def test_a_directory_of_another_experiment_is_refused(command, trained):
    before = contents(trained)
    code, _, err = command("train", "digits_mlp", "--workdir", trained)
    assert code == 2
    assert f"{trained} holds a run of 'clouds', not of 'digits_mlp'" in err
    assert contents(trained) == before


def test_several_seeds(command, clouds, tmp_path):
    code, out, _ = command("train", clouds, "--workdir", "many", "--seeds", "2", *FLAGS)
    assert code == 0
    runs = [tmp_path / "many" / f"seed-{seed}" for seed in (0, 1)]
    results = [read(run / "result.json") for run in runs]
    assert results[0]["params_sha256"] != results[1]["params_sha256"]
    assert [read(run / "experiment.json")["fields"]["seed"] for run in runs] == [0, 1]
    summary = read(tmp_path / "many/summary.json")
    for split in ("train", "validation", "test"):
        for name in ("loss", "accuracy"):
            values = [result["metrics"][split][name] for result in results]
            expected = {
                "mean": np.mean(values),
                "std": np.std(values, ddof=1),
                "min": np.min(values),
                "max": np.max(values),
                "n": 2,
            }
            found = summary["metrics"][split][name]
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
            assert f"mean {np.mean(values):.4f}" in out
    # The held-out splits are the set's, not the run's.
    data = [read(run / "environment.json")["data"] for run in runs]
    assert data[0] == data[1]
    before = contents(tmp_path / "many/seed-0")
    assert command("train", clouds, "--workdir", "many", "--seeds", "2", *FLAGS)[0] == 0
    assert contents(tmp_path / "many/seed-0") == before


def test_an_imported_neighbor_is_kept_with_the_run(command, tmp_path):
    results = []
    for folder, distance in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(SOURCE.replace("2 *", f"{distance} *"))
        (tmp_path / folder / "own.py").write_text('"""Own."""\n\nfrom base import experiment\n')
        workdir = tmp_path / f"run-{folder}"
        assert command("train", f"{folder}/own.py", "--workdir", workdir, *FLAGS)[0] == 0
        assert (workdir / "base.py").read_bytes() == (tmp_path / folder / "base.py").read_bytes()
        (tmp_path / folder / "base.py").unlink()
        results.append(read(workdir / "result.json")["metrics"]["test"])
    for folder, result in zip("ab", results, strict=True):
        code, out, _ = command("evaluate", tmp_path / f"run-{folder}")
        assert code == 0
        assert json.loads(out) == {"split": "test", **result}
    assert results[0] != results[1]
