"""The page about a search says what its directory says, and its pictures show it."""

import json
import math

import numpy as np
import pytest

from jdl.report import search_plots, search_report
from jdl.report.search_plots import Axis, Score, axes_of, score_of
from tests.report.test_report import Reader

SPACE = [
    {"name": "optimizer", "path": "optimizer", "kind": "choice", "options": ["adam", "sgd"]},
    {
        "name": "optimizer.momentum (optimizer=sgd)",
        "path": "optimizer.momentum",
        "kind": "uniform",
        "low": 0.0,
        "high": 0.9,
        "step": None,
    },
    {"name": "rate", "path": "rate", "kind": "log_uniform", "low": 1e-4, "high": 1e-1},
    {"name": "widths", "path": "widths", "kind": "choice", "options": ["[4]", "[8, 8]"]},
    {"name": "units", "path": "units", "kind": "int", "low": 2, "high": 8, "step": 2},
]
ABOUT = {
    "study": "<script>clouds",
    "experiment": "digits_mlp",
    "overrides": {"epochs": "3"},
    "space": SPACE,
    "constraints": ["small"],
    "metric": "validation.loss",
    "direction": "minimize",
    "sampler": "tpe",
    "pruner": "median",
    "trials": 30,
}


def trial(number, state="complete", value=None, error=None, **point):
    drawn = {"optimizer": "adam", "rate": 1e-2, "widths": [4], "units": 2, **point}
    row = {"number": number, "state": state, "value": value, "point": drawn}
    return {**row, "seconds": 2.0 if value else None, "error": error}


def points(count):
    """Trials whose value is set by the logarithm of the rate, and a little by the units."""
    rng = np.random.default_rng(0)
    for number in range(count):
        point = {"rate": 10 ** rng.uniform(-4, -1), "units": 2 * int(rng.integers(1, 5))}
        point |= {"widths": [[4], [8, 8]][rng.integers(2)]}
        if rng.integers(2):
            momentum = {"optimizer.momentum": rng.uniform(0, 0.9)}
            point |= {"optimizer": "sgd", **momentum}
        value = 1 + abs(math.log10(point["rate"]) + 3) + 0.05 * point["units"]
        yield trial(number, value=value, **point)


TRIALS = [
    *points(12),
    trial(12, "pruned", 5.5),
    trial(13, "failed", error="UserError: 10 steps were not finite & <so> on"),
    trial(14, "failed", error="UserError: another"),
    trial(15, "running"),
    trial(16, value=1e9, widths=[8, 8]),
]
BEST = min(TRIALS[:12], key=lambda each: each["value"])


def write(folder, trials, **changes):
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({**ABOUT, **changes}))
    (folder / "study.jsonl").write_text("".join(json.dumps(each) + "\n" for each in trials))
    return folder


def test_the_page_says_what_was_searched_and_found(command, tmp_path):
    folder = write(tmp_path / "found", TRIALS)
    run = folder / f"trials/{BEST['number']:04d}"
    run.mkdir(parents=True)
    (run / "experiment.py").write_text('"""Clouds."""\n\nraise SystemExit("it was executed")\n')
    (run / "result.json").write_text(json.dumps({"metrics": {"validation": {"loss": 0.4321}}}))
    code, out, err = command("report", "found")
    assert (code, out, err) == (0, "found/report/index.html\n", "")
    text = (folder / "report/index.html").read_text()
    seen = Reader(text)
    assert not {"script", "link", "iframe"} & seen.tags
    pictures = {path.stem for path in (folder / "report").glob("*.png")}
    assert pictures == {"history", "importance", "slices", "parallel"}
    assert len(seen.images) == 4
    for part in (
        "Search of <script>clouds",
        "Clouds.",
        "validation.loss, of which less is better",
        "13 complete, 1 pruned, 2 failed, 1 running; 30 wanted",
        f"Trial {BEST['number']}, validation.loss {BEST['value']:.4f}:",
        "0.4321",
        f"jdl evaluate found/trials/{BEST['number']:04d}",
        f"jdl train digits_mlp --epochs 3 --optimizer {BEST['point']['optimizer']}",
        "Trial 13 failed: UserError: 10 steps were not finite & <so> on. 1 more failed.",
        "One value lies far beyond the others",
        "Dimensions that vary in some trials only are left out.",
        "0.0001 to 0.1",
        "in steps of 2",
    ):
        assert part in seen.text, part
    rows = text[text.rindex("<table>") :]
    values = [f"{each['value']:.4f}" for each in sorted(TRIALS[:12], key=lambda t: t["value"])]
    places = [rows.index(value) for value in [*values, "1e+09", "pruned", "failed", "running"]]
    assert places == sorted(places)


def test_a_search_that_only_began_has_a_page(command, tmp_path):
    for name, trials, said in (
        ("none", [], "none yet; 30 wanted"),
        ("one", [trial(0, "running")], "1 running"),
        ("few", TRIALS[:3], "Too few trials to tell: 3 are complete, importance takes 10."),
        ("failed", TRIALS[13:15], "2 failed"),
        ("pruned", TRIALS[12:13], "1 pruned"),
        ("alike", [trial(number, value=2.0) for number in range(12)], "trials are alike"),
    ):
        folder = write(tmp_path / name, trials, space=SPACE[2:3])
        assert command("report", folder)[::2] == (0, ""), name
        assert said in Reader((folder / "report/index.html").read_text()).text
        assert (folder / "report/history.png").exists() == (name not in ("none", "one", "failed"))


def test_importance_finds_what_the_value_depends_on():
    trials = list(points(40))
    rows = [row for row in SPACE if row["name"] == row["path"]]
    found = search_report.importance(rows, trials, score_of("validation.loss", True, trials))
    assert set(found) == {"optimizer", "rate", "widths", "units"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["rate"] > 0.8
    assert max(found["optimizer"], found["widths"]) < 0.1


def test_history_shows_the_best_so_far():
    trials = [trial(n, value=v) for n, v in enumerate([3.0, 4.0, 2.0, 5.0, 1.0])]
    for lower, best in ((True, [3, 3, 2, 2, 1, 1]), (False, [3, 4, 4, 5, 5, 5])):
        figure = search_plots.history(trials, score_of("a.b", lower, trials))
        (line,) = figure.axes[0].lines
        assert list(line.get_ydata()) == best
        (dots,) = figure.axes[0].collections
        assert [y for _, y in dots.get_offsets()] == [3, 4, 2, 5, 1]


def test_few_values_that_diverged_are_drawn_on_the_edge():
    score = score_of("a.b", True, [trial(n, value=v) for n, v in enumerate([1.0, 2, 3, 1e8])])
    assert score == Score("a.b", True, 3.0)
    assert [score.drawn(value) for value in (1.0, 1e8)] == [1.0, 3.0]
    for values in ([0.9, 0.1], [0.9, 0.8, 0.1], [0.9, 0.9, 0.9, 0.9, 0.1]):
        score = score_of("a.b", False, [trial(n, value=v) for n, v in enumerate(values)])
        assert [score.drawn(value) for value in (0.9, 0.1)] == [0.9, 0.1]


def test_axes_place_numbers_and_options():
    optimizer, momentum, rate, widths, _ = axes_of(SPACE)
    assert [rate.log, momentum.log] == [True, False]
    np.testing.assert_allclose(rate.scaled(np.array([1e-4, 1e-3, 1e-1])), [0, 1 / 3, 1])
    assert [widths.place(trial(0, widths=w)) for w in ([4], [8, 8])] == [0, 1]
    assert math.isnan(momentum.place(trial(0)))
    assert optimizer.place(trial(0, optimizer="sgd")) == 1
    twice = [{"path": "a", "kind": "choice", "options": [1, 2]}] * 2
    assert axes_of(twice) == [Axis("a", False, ("1", "2"))]
