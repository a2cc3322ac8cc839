"""`jdl tune`: other commands read its directories, and its errors are one sentence."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jdl.analysis.reproduce import reproduce
from jdl.cli.main import main
from jdl.errors import install_command
from jdl.trainer.record import read_run
from tests.experiment_source import read
from tests.report.test_report import Reader

pytest.importorskip("optuna", reason="optuna is not installed")

FILE = '''"""Digits, searched."""

from jdl import Experiment, Runtime
from jdl.data import Digits
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate, Progress
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.sweeps.search import LogUniform

experiment = Experiment(
    model=MLP(widths=(4,)),
    data=Digits(validation_fraction=0.25),
    optimizer=SGD(0.01),
    hooks=(
        Progress(),
        Evaluate(every=4),
        EarlyStopping(patience=2),
        Checkpoint(every=7, best=1),
    ),
    steps=20,
    runtime=Runtime(log_every=5),
)
space = {"optimizer.learning_rate": LogUniform(1e-3, 1e-2)}
'''
WORDS = ["tune", "mine.py", "--trials", "2", "--workdir", "found", "--storage", "sqlite:///a.db"]
WORDS += ["--batch-size", "16", "--metric", "validation.loss", "--hooks.3.every", "6"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder in which a search has ended, `found`, with its final run."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "mine.py").write_text(FILE)
        assert main([*WORDS, "--refit"]) == 0
    return folder


@pytest.fixture
def folder(searched, command, monkeypatch, tmp_path):
    """A copy of it, in which a command is given."""
    copy = tmp_path / "copy"
    shutil.copytree(searched, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


def test_the_best_is_used_as_any_run(command, folder):
    rows = [json.loads(line) for line in (folder / "found/study.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["value"])
    code, out, err = command("evaluate", "found/best")
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert (scores["split"], scores["loss"]) == ("validation", best["value"])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("zero.png")
    code, out, err = command("predict", "found/best", "zero.png")
    assert (code, err) == (0, "")
    assert json.loads(out)["file"] == "zero.png"
    assert command("report", "found/best")[::2] == (0, "")
    text = Reader((folder / "found/best/report/index.html").read_text()).text
    assert "on the validation split" in text
    assert "test split" not in text
    assert command("report", "found")[::2] == (0, "")
    text = Reader((folder / "found/report/index.html").read_text()).text
    assert "jdl evaluate found/best" in text
    assert "Digits, searched." in text
    assert "--batch-size 16" in text
    test = read(folder / "found/refit/result.json")["metrics"]["test"]
    assert f"{test['loss']:.4f}" in text
    code, _, err = command("evaluate", "found")
    assert (code, err.count("\n")) == (2, 1)
    assert "found holds a search: name a run of it, such as found/best" in err


def test_the_final_run_learns_from_validation_too_for_as_long_as_the_best(folder):
    best, final = folder / "found/best", folder / "found/refit"
    before, after = (read(run / "environment.json")["data"] for run in (best, final))
    held_out = before["validation"]["count"]
    assert set(after) == {"train", "test"}
    assert after["train"]["count"] == before["train"]["count"] + held_out == 1438
    rows = [json.loads(line) for line in (best / "metrics.jsonl").read_text().splitlines()]
    scored = [(r["metrics"]["loss"], r["step"]) for r in rows if r["split"] == "validation"]
    passes = min(scored)[1] * 16 / before["train"]["count"]
    steps = read(final / "experiment.json")["total_steps"]
    assert steps == read(final / "result.json")["step"]
    assert abs(steps * 16 / 1438 - passes) <= 8 / 1438
    assert set(read(final / "result.json")["metrics"]) == {"train", "test"}
    hooks = read_run(final).experiment.hooks
    assert [type(hook).__name__ for hook in hooks] == ["Progress", "Evaluate", "Checkpoint"]
    assert [hooks[1].every, hooks[2].every, hooks[2].best] == [4, 6, 0]
    again = reproduce(final, folder / "again")
    assert again.equal
    again = reproduce(best, folder / "best-again")
    assert again.equal
    assert not again.surroundings


def test_a_final_run_is_not_trained_twice(command, folder, monkeypatch):
    result = folder / "found/refit/result.json"
    before = read(result)
    result.unlink()  # as if it had been killed just before
    code, out, err = command(*WORDS, "--refit")
    assert (code, err) == (0, "")
    assert "resuming from step" in out
    assert read(result)["params_sha256"] == before["params_sha256"]
    monkeypatch.setattr("jdl.trainer.api.TrainingLoop", None)
    code, out, err = command(*WORDS, "--refit")
    assert (code, err) == (0, "")
    assert f"loss {before['metrics']['test']['loss']:.4f}" in out
    assert read(result)["metrics"] == before["metrics"]
    overrides = folder / "found/refit/overrides.json"
    overrides.write_text(json.dumps({**read(overrides), "optimizer.learning_rate": 0.5}))
    code, _, err = command(*WORDS, "--refit")
    assert (code, err.count("\n")) == (2, 1)
    assert "found/refit holds another point than the best trial's" in err


def test_a_validation_split_of_the_set_itself_is_not_joined(command, tmp_path):
    text = FILE.replace("import Digits", "import Arrays, Digits").replace(
        "Digits(validation_fraction=0.25)",
        'Arrays({"train": Digits().load()["train"].arrays, '
        '"validation": Digits().load()["train"].arrays})',
    )
    (tmp_path / "own.py").write_text(text)
    code, out, err = command("tune", "own.py", "--refit")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the validation split of arrays cannot be merged into training for --refit" in err
    assert not (tmp_path / "runs").exists()


RATE = "--space optimizer.learning-rate=log:1e-4:1e-1"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "the search space is empty: add dimensions by --space"),
        ("--space optimizer.learning-rat=log:1e-4:1", "did you mean 'learning_rate'"),
        ("--space optimizer.learning-rate", "--space optimizer.learning-rate: write PATH=KIND"),
        ("--space optimizer.learning-rate=lgo:1:2", "did you mean 'log'"),
        ("--space optimizer.learning-rate=log:1e-4", "log takes numbers LOW:HIGH"),
        ("--space optimizer.learning-rate=log:2:1", "the range is empty"),
        (f"{RATE} --sampler tpee", "tpee"),
        (f"{RATE} --pruner mediann", "mediann"),
        (f"{RATE} --sampler grid", "has no step"),
        (f"{RATE} --trials x", "x"),
        (f"{RATE} --trials 0", "trials must be at least 1, not 0"),
        (f"{RATE} --workers 0", "workers must be at least 1, not 0"),
        (f"{RATE} --mode most", "most"),
        (f"{RATE} --metric test.accuracy", "never reads the test split"),
        (f"{RATE} --metric validation.acuracy", "did you mean 'accuracy'"),
        (f"{RATE} --storage sqlite:////nowhere/at/all.db", "all.db cannot be reached"),
        (f"{RATE} --smapler grid", "did you mean 'sampler'"),
        (f"{RATE} --optimzer sgd", "did you mean 'optimizer'"),
    ],
)
def test_a_mistake_takes_one_sentence(command, tmp_path, words, complaint):
    code, out, err = command("tune", "digits_mlp", *words.split())
    assert (code, out) == (2, "")
    (sentence,) = err.splitlines()
    assert sentence.startswith("jdl: ")
    assert complaint in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "sampler", "extra"),
    [("torch", "gp", "search-gp"), ("cmaes", "cmaes", "search-cmaes"), ("optuna", "tpe", "search")],
)
def test_a_missing_package_is_named_with_its_extra(
    command, monkeypatch, tmp_path, missing, sampler, extra
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == missing else found(name, *rest),
    )
    code, out, err = command("tune", "digits_mlp", *RATE.split(), "--sampler", sampler)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"needs the package {missing}: {install_command(extra)}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_no_place_for_a_search(command, tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    code, out, err = command("tune", "digits_mlp", *RATE.split(), "--workdir", ".")
    assert (code, out) == (2, "")
    assert err == "jdl: . holds a run, not a search: choose another --workdir\n"


def test_the_rate_of_one_part_is_searched_by_its_path(command):
    source = FILE.replace("SGD(0.01)", 'Partition(parts=(("Dense_0", SGD(0.1)), ("*", SGD(0.1))))')
    source = source.replace("import SGD", "import SGD, Partition").replace("steps=20", "steps=4")
    Path("parts.py").write_text(source[: source.index("space = ")])
    words = ["tune", "parts.py", "--trials", 2, "--workdir", "study", "--metric", "validation.loss"]
    space = "optimizer.parts.0.1.learning-rate=log:1e-3:1e-1"
    code, out, err = command(*words, "--space", space, "--sampler", "random")
    assert (code, err) == (0, "")
    rates = re.findall(r"--optimizer\.parts\.0\.1\.learning-rate (\S+)", out)
    rows = [json.loads(line) for line in Path("study/study.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["value"])
    assert len({row["value"] for row in rows}) == 2
    point = best["point"]["optimizer.parts.0.1.learning_rate"]
    assert len(rates) == 1
    assert float(rates[0]) == pytest.approx(point, rel=1e-3)
    parts = read_run(Path("study/best")).experiment.optimizer.parts
    assert [part.learning_rate for _, part in parts] == [point, 0.1]
