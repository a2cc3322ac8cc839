"""Comparisons: differing fields, shared metrics, and several seeds as one row."""

import json
import re
import shutil

import pytest

from jdl.cli.main import main
from jdl.report import comparison
from jdl.report.comparison import Entry, read_entry
from tests.experiment_source import FLAGS, contents, read


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clouds, trained):
    """Run directories: `a` of other widths than `trained`, and `many` of two seeds."""
    root = tmp_path_factory.mktemp("several")
    changed = [*FLAGS[:-2], "5"]
    for words in (["--workdir", root / "a"], ["--workdir", root / "many", "--seeds", "2"]):
        assert main(["train", str(clouds), *map(str, words), *changed]) == 0
    shutil.copytree(trained, root / "b")
    return root


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_says_what_differs(command, folder, tmp_path):
    before = contents(folder)
    code, out, err = command("compare", folder / "a", folder / "b", folder / "many")
    assert (code, err) == (0, "")
    header, *rows, page = map(cells, out.splitlines())
    assert header == [
        "run", "model.widths", "seed",
        "test accuracy", "test loss", "test nll",
        "validation accuracy", "validation loss", "validation nll",
        "steps", "seconds", "parameters",
    ]  # fmt: skip
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["run"] for row in table] == [str(folder / name) for name in ("a", "b", "many")]
    assert [row["model.widths"] for row in table] == ["5", "4 3", "5"]
    assert [row["seed"] for row in table] == ["0", "0", "0 1"]
    for name, row in zip("ab", table, strict=False):
        result = read(folder / name / "result.json")
        assert row["test accuracy"] == f"{result['metrics']['test']['accuracy']:.4f}"
        assert row["steps"] == "6"
        assert row["parameters"] == str(result["parameters"])
    spread = read(folder / "many/summary.json")["metrics"]["test"]["loss"]
    expected = "{mean:.4f} [{min:.4f}, {max:.4f}]".format(**spread)
    assert table[2]["test loss"] == expected
    assert page == ["compare/compare.html"]
    text = (tmp_path / "compare/compare.html").read_text()
    assert expected in text
    assert not re.search("(src|href)=.http", text)
    assert [path.name for path in (tmp_path / "compare").glob("*.png")] == ["curves.png"]
    assert contents(folder) == before


def test_a_curve_is_the_validation_loss(folder):
    entries = [read_entry(folder / name) for name in ("a", "b", "many")]
    what, lines = comparison.curve(entries)
    assert what == "validation loss"
    assert list(lines) == [
        "model.widths 5, seed 0",
        "model.widths 4 3, seed 0",
        "model.widths 5, seed 0 1",
    ]
    rows = [json.loads(line) for line in (folder / "a/metrics.jsonl").read_text().splitlines()]
    expected = [(r["step"], r["metrics"]["loss"]) for r in rows if r["split"] == "validation"]
    first, _, seeds = lines.values()
    steps, losses = first
    assert list(zip(steps, losses, strict=True)) == expected
    # The seeds' line is that of the first one, which is the run `a`.
    assert seeds == first


def entry(name, fields, metrics, rows=()):
    scores = {metric: (value,) for metric, value in metrics.items()}
    return Entry(name, fields, scores, "6", 1.0, None, rows)


def row(split, **metrics):
    return {"split": split, "step": 3, "metrics": metrics}


def test_fields_of_another_class_are_left_out():
    one = {"optimizer": "sgd", "optimizer.momentum": 0.9, "seed": 0, "optimizers": 1}
    two = {"optimizer": "adam", "optimizer.b1": 0.9, "seed": 0, "optimizers": 2}
    entries = [entry("a", one, {}), entry("b", two, {})]
    assert comparison.differing(entries) == ["optimizer", "optimizers"]
    same = {"optimizer": "sgd", "optimizer.momentum": 0.5, "seed": 0}
    assert comparison.differing([entry("a", one, {}), entry("b", same, {})]) == [
        "optimizer.momentum",
        "optimizers",
    ]
    assert comparison.differing([entries[0]]) == []


def test_runs_of_different_tasks_share_no_loss():
    one = entry("a", {"task": "classification"}, {"test loss": 1.0, "test accuracy": 0.5})
    two = entry("b", {"task": "binary"}, {"test loss": 1.0, "test accuracy": 0.6})
    three = entry("c", {"task": "forecast"}, {"test loss": 1.0, "test rmse": 0.6})
    assert comparison.shared([one, one]) == ["test loss", "test accuracy"]
    assert comparison.shared([one, two]) == ["test accuracy"]
    assert comparison.shared([one, two, three]) == []
    assert comparison.curve([one, three]) == ("", {})


def test_the_training_loss_is_drawn_where_one_was_not_validated():
    one = entry("a", {"task": "t", "x": 1}, {}, [row("validation", loss=2.0), row("train", loss=1)])
    two = entry("b", {"task": "t", "x": 2}, {}, [row("train", loss=3.0)])
    assert comparison.curve([one, two])[0] == "train loss"
    assert comparison.curve([one, two])[1] == {"x 1": ([3], [1]), "x 2": ([3], [3.0])}
    assert comparison.curve([one])[0] == "validation loss"


def test_no_metric_in_common_is_said(command, folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "other")
    recorded = read(tmp_path / "other/experiment.json")
    recorded["fields"]["task"] = "forecast"
    (tmp_path / "other/experiment.json").write_text(json.dumps(recorded))
    result = read(tmp_path / "other/result.json")
    result["metrics"] = {"test": {"loss": 1.0, "rmse": 2.0}}
    (tmp_path / "other/result.json").write_text(json.dumps(result))
    code, out, _ = command("compare", folder / "a", "other", "--out", "here")
    assert code == 0
    assert "These runs share no metric of test or validation" in out
    assert "classification, forecast" in out
    assert (tmp_path / "here/compare.html").exists()


def test_a_run_that_has_not_ended_shows_how_far_it_is(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    found = read_entry(tmp_path / "run")
    assert found.steps == "6 of 6"
    ended = read_entry(folder / "a")
    assert found.metrics == {k: v for k, v in ended.metrics.items() if "validation" in k}
    assert found.parameters is None


@pytest.mark.parametrize("name", ["nowhere", "empty", "."])
def test_what_is_no_run_is_named(command, folder, tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, out, err = command("compare", folder / "a", name)
    assert (code, out) == (2, "")
    assert err.startswith(f"jdl: {name} is no run directory")
    assert not (tmp_path / "compare").exists()
