"""The report of a search shows what its directory holds."""

import json
import math

import numpy as np
import pytest

from jdl.report import search_plots, search_report
from jdl.report.search_plots import Axis, Objective, axes_of, objective_of
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


def test_the_report_shows_configuration_best_trial_and_all_trials(command, tmp_path):
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
        "Search <script>clouds",
        "Clouds.",
        "validation.loss (lower is better)",
        "13 complete, 1 pruned, 2 failed, 1 running; 30 requested",
        f"Trial {BEST['number']}, validation.loss {BEST['value']:.4f}:",
        "0.4321",
        f"jdl evaluate found/trials/{BEST['number']:04d}",
        f"jdl train digits_mlp --epochs 3 --optimizer {BEST['point']['optimizer']}",
        "Trial 13 failed: UserError: 10 steps were not finite & <so> on. 1 more failed.",
        "Outliers clipped to the edge of all plots: 1.",
        "Conditional dimensions are left out.",
        "0.0001 to 0.1",
        "in steps of 2",
    ):
        assert part in seen.text, part
    rows = text[text.rindex("<table>") :]
    values = [f"{each['value']:.4f}" for each in sorted(TRIALS[:12], key=lambda t: t["value"])]
    places = [rows.index(value) for value in [*values, "1e+09", "pruned", "failed", "running"]]
    assert places == sorted(places)


def test_a_search_that_has_just_started_has_a_report(command, tmp_path):
    for name, trials, sentence in (
        ("none", [], "none; 30 requested"),
        ("one", [trial(0, "running")], "1 running"),
        ("few", TRIALS[:3], "Not computed: 3 trials are complete, 10 are needed."),
        ("failed", TRIALS[13:15], "2 failed"),
        ("pruned", TRIALS[12:13], "1 pruned"),
        (
            "alike",
            [trial(number, value=2.0) for number in range(12)],
            "all complete trials are equal",
        ),
    ):
        folder = write(tmp_path / name, trials, space=SPACE[2:3])
        assert command("report", folder)[::2] == (0, ""), name
        assert sentence in Reader((folder / "report/index.html").read_text()).text
        assert (folder / "report/history.png").exists() == (name not in ("none", "one", "failed"))


def test_importance_is_highest_for_what_determines_the_value():
    trials = list(points(40))
    made = search_report.optuna_study(SPACE, trials, objective_of("validation.loss", True, trials))
    found = search_report.importance(made, [r["path"] for r in SPACE if r["name"] == r["path"]])
    assert set(found) == {"optimizer", "rate", "widths", "units"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["rate"] > 0.8
    assert max(found["optimizer"], found["widths"]) < 0.1


def test_history_shows_the_best_so_far():
    trials = [trial(n, value=v) for n, v in enumerate([3.0, 4.0, 2.0, 5.0, 1.0])]
    for lower, best in ((True, [3, 3, 2, 2, 1, 1]), (False, [3, 4, 4, 5, 5, 5])):
        figure = search_plots.history(trials, objective_of("a.b", lower, trials))
        (line,) = figure.axes[0].lines
        assert list(line.get_ydata()) == best
        (dots,) = figure.axes[0].collections
        assert [y for _, y in dots.get_offsets()] == [3, 4, 2, 5, 1]


def test_outliers_are_clipped():
    objective = objective_of(
        "a.b", True, [trial(n, value=v) for n, v in enumerate([1.0, 2, 3, 1e8])]
    )
    assert objective == Objective("a.b", True, 3.0)
    assert [objective.clip(value) for value in (1.0, 1e8)] == [1.0, 3.0]
    for values in ([0.9, 0.1], [0.9, 0.8, 0.1], [0.9, 0.9, 0.9, 0.9, 0.1]):
        objective = objective_of("a.b", False, [trial(n, value=v) for n, v in enumerate(values)])
        assert [objective.clip(value) for value in (0.9, 0.1)] == [0.9, 0.1]


def test_axes_position_numbers_and_options():
    optimizer, momentum, rate, widths, _ = axes_of(SPACE)
    assert [rate.log, momentum.log] == [True, False]
    assert rate.position(trial(0)) == 1e-2
    assert [widths.position(trial(0, widths=w)) for w in ([4], [8, 8])] == [0, 1]
    assert math.isnan(momentum.position(trial(0)))
    assert optimizer.position(trial(0, optimizer="sgd")) == 1
    twice = [{"path": "a", "kind": "choice", "options": [1, 2]}] * 2
    assert axes_of(twice) == [Axis("a", False, ("1", "2"))]


def test_parallel_coordinates_take_conditional_constant_and_clipped_values():
    sgd = {"optimizer": "sgd", "optimizer.momentum": 0.9}
    nested = [*SPACE, {**SPACE[1], "name": "optimizer.momentum (optimizer=rmsprop)", "low": -1.0}]
    trials = [trial(0, value=1.0), trial(1, value=1.0, **sgd), TRIALS[-1], *TRIALS[12:16]]
    for found in (trials, trials[:2], trials[:1]):
        for minimize in (True, False):
            made = search_report.optuna_study(nested, found, objective_of("a.b", minimize, found))
            figure = search_plots.parallel_coordinates(made, "a.b")
            (lines,) = figure.axes[0].collections
            assert len(lines.get_segments()) == min(len(found), 3)
