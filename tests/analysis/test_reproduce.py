"""Repeats recorded runs, and compares experiments with their expected results."""

import json
import os
import re
import shutil

import jax
import pytest

import jdl
from jdl.cli.main import main

CLOUDS = '''"""Two clouds of points, classified by a small network."""

import numpy as np

from jdl import Experiment
from jdl.data import Arrays
from jdl.models import MLP
from jdl.optimizers import SGD

generator = np.random.default_rng(0)
label = generator.integers(0, 2, 80)
image = generator.normal(size=(80, 3)) + 2 * label[:, None]
experiment = Experiment(
    model=MLP(widths=(4,), features=2),
    data=Arrays({"train": {"image": image, "label": label}}),
    optimizer=SGD(0.1),
    steps=6,
    batch_size=8,
)
'''
ABSENT = """
import dataclasses

from jdl.data import TFDS

experiment = dataclasses.replace(experiment, data=TFDS("absent", data_dir="nowhere"))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "clouds.py").write_text(CLOUDS)
    workdir = folder / "run"
    words = ["train", str(folder / "clouds.py"), "--workdir", str(workdir)]
    assert main([*words, "--seed", "3", "--runtime.log-every", "2"]) == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Gives a command in an empty directory; returns exit code, output and complaints."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def read(path):
    return json.loads(path.read_text())


def change(path, *names, value):
    """Sets an entry of a JSON file."""
    content = read(path)
    entry = content
    for name in names[:-1]:
        entry = entry[name]
    assert entry[names[-1]] != value
    entry[names[-1]] = value
    path.write_text(json.dumps(content))


def differences(out):
    return [line for line in out.splitlines() if line.startswith("differs: ")]


def test_a_run_is_reproduced_bit_for_bit(command, run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = command("reproduce", run)
    assert code == 0
    assert "parameters: equal, bit for bit" in out
    assert differences(out) == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (again,) = [path for path in tmp_path.iterdir() if path != run]
    assert again.name.startswith("run-again-")
    first, second = read(run / "result.json"), read(again / "result.json")
    for name in ("experiment", "step", "metrics", "params_sha256"):
        assert first[name] == second[name]
    for split, scores in first["metrics"].items():
        for name, value in scores.items():
            assert f"{split} {name}: {value!r} recorded, {value!r} now" in out


def test_other_parameters_are_not_reproduced(command, run):
    change(run / "result.json", "params_sha256", value="0" * 64)
    code, out, _ = command("reproduce", run, "--workdir", "again")
    assert code == 1
    assert "parameters: not equal" in out


def test_other_metrics_are_not_reproduced(command, run):
    change(run / "result.json", "metrics", "test", "accuracy", value=2.0)
    code, out, _ = command("reproduce", run, "--workdir", "again")
    assert code == 1
    assert "test accuracy: 2.0 recorded" in out


def test_what_is_different_elsewhere_is_said(command, run):
    path = run / "environment.json"
    change(run / "result.json", "params_sha256", value="0" * 64)
    change(path, "versions", "jax", value="0.0.1")
    change(path, "devices", "kind", value="abacus")
    change(path, "flags", "XLA_FLAGS", value="--other")
    change(path, "data", "test", "sha256", value="0" * 64)
    code, out, _ = command("reproduce", run, "--workdir", "again")
    # Not bit for bit, but every metric is as close as other surroundings allow.
    assert code == 0
    found = "\n".join(differences(out))
    assert len(differences(out)) == 4
    assert f"versions.jax: 0.0.1 -> {jax.__version__}" in found
    assert "devices.kind: abacus -> " in found
    assert f"flags.XLA_FLAGS: --other -> {os.environ['XLA_FLAGS']}" in found
    assert f"data.test.sha256: {'0' * 64} -> " in found


def test_metrics_may_differ_by_the_tolerance_where_surroundings_do(command, run):
    change(run / "environment.json", "versions", "jax", value="0.0.1")
    change(run / "result.json", "params_sha256", value="0" * 64)
    loss = read(run / "result.json")["metrics"]["test"]["loss"]
    change(run / "result.json", "metrics", "test", "loss", value=loss + 0.004)
    assert command("reproduce", run, "--workdir", "one")[0] == 0
    assert command("reproduce", run, "--workdir", "two", "--tolerance", "0.003")[0] == 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda run: (run / "result.json").unlink(),
            "has no result.json: the run has not finished",
        ),
        (lambda run: (run / "result.json").write_text("{"), "result.json cannot be read"),
        (lambda run: (run / "experiment.json").unlink(), "is no run directory"),
        (lambda run: (run / "experiment.py").unlink(), "--experiment"),
        (
            lambda run: (run / "experiment.py").write_text(CLOUDS.replace("SGD(0.1)", "SGD(0.2)")),
            "optimizer.learning_rate: 0.1 -> 0.2",
        ),
    ],
)
def test_a_run_that_cannot_be_reproduced(command, run, tmp_path, damage, complaint):
    damage(run)
    code, out, err = command("reproduce", run)
    assert (code, out) == (2, "")
    (sentence,) = err.splitlines()
    assert complaint in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_arrays_that_have_changed_are_named(command, run, tmp_path):
    (run / "experiment.py").write_text(CLOUDS.replace("2 * label", "label"))
    code, out, err = command("reproduce", run, "--workdir", tmp_path / "again")
    assert code in (0, 1)
    assert "data.train.sha256" in out + err


def test_a_file_of_one_s_own_is_used_instead(command, run, tmp_path):
    (run / "experiment.py").unlink()
    (tmp_path / "mine.py").write_text(CLOUDS)
    code, out, _ = command("reproduce", run, "--experiment", "mine.py", "--workdir", "again")
    assert code == 0
    assert "equal, bit for bit" in out
    assert (tmp_path / "again/experiment.py").read_text() == CLOUDS


def test_a_run_from_python_is_reproduced_from_its_file(command, tmp_path):
    (tmp_path / "clouds.py").write_text(CLOUDS)
    jdl.train(jdl.load(tmp_path / "clouds.py").experiment, tmp_path / "run")
    code, _, err = command("reproduce", tmp_path / "run")
    assert code == 2
    assert "--experiment" in err
    assert command("reproduce", tmp_path / "run", "--experiment", "clouds.py")[0] == 0


def promising(line):
    return CLOUDS.replace("network.", f"network.\n\n{line}\n", 1)


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """An own folder of experiments, without those that are shipped."""
    folder = tmp_path / "experiments"
    folder.mkdir()

    def available():
        return {path.stem: path for path in sorted(folder.glob("*.py"))}

    monkeypatch.setattr("jdl.analysis.reproduce.available", available)
    monkeypatch.setattr("jdl.config.experiment_file.available", available)
    return folder


def test_every_experiment_is_held_to_its_promise(command, experiments, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    kept = "Expect: test accuracy {} (2 seeds, min 0.5), 1 s, anywhere"
    (experiments / "clouds.py").write_text(promising(kept.format("0.5")))
    (experiments / "silent.py").write_text(CLOUDS)
    absent = 'TFDS("absent", data_dir="nowhere")'
    text = promising(kept.format("0.9")).replace(
        'Arrays({"train": {"image": image, "label": label}})', absent
    )
    (experiments / "absent.py").write_text(text.replace("import Arrays", "import TFDS"))

    code, out, _ = command("reproduce", "--all", "--workdir", "all")
    summary = read(tmp_path / "all/clouds/summary.json")
    assert summary["seeds"] == [0, 1]
    reached = summary["metrics"]["test"]["accuracy"]["mean"]
    lines = [
        line for line in out.splitlines() if line.split(":")[0] in ("clouds", "silent", "absent")
    ]
    assert lines[0].startswith("absent: skipped: data set 'absent' is not in nowhere")
    assert lines[1].startswith(f"clouds: test accuracy {reached:.4f}, expected 0.5000")
    assert lines[2] == "silent: skipped: its docstring has no Expect: line"
    assert code == (0 if abs(reached - 0.5) <= 0.005 else 1)
    assert ("OUT OF TOLERANCE" in lines[1]) == (code == 1)

    (experiments / "clouds.py").write_text(promising(kept.format(round(reached, 4))))
    code, out, _ = command("reproduce", "--all", "--workdir", "again")
    assert code == 0
    assert "OUT OF TOLERANCE" not in out

    (experiments / "clouds.py").write_text(promising(kept.format(round(reached - 0.1, 4))))
    code, out, _ = command("reproduce", "--all", "--workdir", "third")
    assert code == 1
    assert "OUT OF TOLERANCE" in out


def test_list(command, experiments):
    line = "Expect: test accuracy 0.8125 (3 seeds, min 0.75), 2.5 s, anywhere"
    (experiments / "clouds.py").write_text(promising(line))
    (experiments / "longer_name.py").write_text(CLOUDS)
    (experiments / "broken.py").write_text('"""Broken."""\n\nraise ValueError("so")\n')
    code, out, err = command("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["broken", "clouds", "longer_name"]
    assert "Two clouds of points" in lines[1]
    assert lines[1].split("  ")[-1] == "2.5 s"
    for part in ("arrays", "test accuracy 0.8125"):
        assert part in lines[1]
    assert "line 3: ValueError: so" in lines[0]
    assert "0.8125" not in lines[2]
    assert lines[1].index("Two") == lines[2].index("Two")


def test_list_of_what_is_shipped(command):
    code, out, _ = command("list")
    assert code == 0
    found = {line.split()[0]: line for line in out.splitlines()}
    assert {"digits_mlp", "digits_cnn", "mnist_mlp", "mnist_cnn"} <= found.keys()
    assert re.search(r"  digits  ", found["digits_mlp"])
    assert re.search(r"  mnist(:3\.0\.1)?  ", found["mnist_mlp"])
