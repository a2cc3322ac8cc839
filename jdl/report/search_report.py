"""The page about a search, from what its directory holds; it may still be going on."""

import importlib.util
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.experiment_file import available, documentation
from jdl.files import read_rows
from jdl.report import plots, search_plots
from jdl.report.page import Folder, Html, html, paragraph, section, shown, table
from jdl.report.run_details import flags
from jdl.report.search_plots import Score, Trials
from jdl.trainer import record

ENOUGH = 10
"""Complete trials from which on importance is told."""

SHOWN = 40
"""Trials that are shown; the others when they are asked for."""

STATES = ("complete", "pruned", "failed", "running")


def holds_study(directory: Path) -> bool:
    """Whether a directory is that of a search."""
    return (directory / "study.json").exists()


def write_study(directory: Path, out: Path | None = None) -> Path:
    """Writes the page about a search, and its pictures beside it; executes nothing.

    Args:
      directory: of the search.
      out: where to write; None for `report` in it.

    Returns:
      The page.

    Raises:
      UserError: what the directory holds cannot be read, or matplotlib is missing.
    """
    plots.require()
    study, trials = record.read(directory, "study.json"), read_rows(directory / "study.jsonl")
    folder = Folder(out or directory / "report")
    score = search_plots.score_of(study["metric"], study["direction"] == "minimize", trials)
    ranked = _ranked(trials, score)
    parts = [_searched(study, trials)]
    if ranked and ranked[0]["state"] == "complete":
        parts.append(_best(directory, study, ranked[0]))
        parts += _final(directory)
    if search_plots.values_of(trials):
        parts += _pictures(study, trials, score, folder)
    return folder.page(
        "index.html",
        f"Search of {study['study']}",
        *_about(directory, ranked),
        *parts,
        _table(study, ranked),
    )


def importance(
    space: Sequence[Mapping[str, Any]], trials: Trials, score: Score
) -> dict[str, float]:
    """How much each dimension that every trial has matters for the value (Hutter et al., 2014).

    Args:
      space: as `study.json` lists it.
      trials: complete ones.
      score: says how far values count.

    Returns:
      By name, shares that add up to 1; all 0 where all values are the same.
    """
    import optuna

    from jdl.sweeps.search.samplers import quiet

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = [row for row in space if row["name"] == row["path"]]
    distributions = {row["path"]: _distribution(row) for row in rows}
    with quiet():
        study = optuna.create_study()
        for trial in trials:
            values = {row["path"]: _value(row, trial["point"][row["path"]]) for row in rows}
            study.add_trial(
                optuna.trial.create_trial(
                    params=values, distributions=distributions, value=score.drawn(trial["value"])
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(row: Mapping[str, Any]) -> Any:
    from optuna import distributions

    if row["kind"] == "choice":
        return distributions.CategoricalDistribution([str(option) for option in row["options"]])
    if row["kind"] == "int":
        return distributions.IntDistribution(row["low"], row["high"], step=row["step"])
    log = row["kind"] == "log_uniform"
    return distributions.FloatDistribution(row["low"], row["high"], log=log, step=row.get("step"))


def _value(row: Mapping[str, Any], value: Any) -> Any:
    return str(value) if row["kind"] == "choice" else value


def _ranked(trials: Trials, score: Score) -> list[Mapping[str, Any]]:
    """Complete trials from the best on, then pruned ones, then the others."""

    def key(trial: Mapping[str, Any]) -> tuple[int, float, int]:
        known = search_plots.values_of([trial])
        rank = (known[0] if score.lower else -known[0]) if known else math.inf
        return STATES.index(trial["state"]), rank, trial["number"]

    return sorted(trials, key=key)


def _about(directory: Path, ranked: Trials) -> list[Html]:
    """What the experiment's file says of itself."""
    kept = [directory / f"trials/{trial['number']:04d}/experiment.py" for trial in ranked]
    file = next((path for path in kept if path.exists()), None)
    return [paragraph(documentation(file).split("\n")[0], quiet=True)] if file else []


def _searched(study: Mapping[str, Any], trials: Trials) -> Html:
    counts = Counter(trial["state"] for trial in trials)
    found = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none yet"
    seconds = sum(trial["seconds"] or 0.0 for trial in trials)
    better = "less" if study["direction"] == "minimize" else "more"
    lines = [
        ("metric", f"{study['metric']}, of which {better} is better"),
        ("sampler", study["sampler"]),
        ("pruner", study["pruner"]),
        ("trials", f"{found}; {study['trials']} wanted"),
        ("training", f"{seconds:,.1f} s in all"),
    ]
    if study["constraints"]:
        lines.append(("constraints", ", ".join(study["constraints"])))
    space = [(row["name"], row["kind"].replace("_", " "), _range(row)) for row in study["space"]]
    return section(
        "What was searched", table(("", ""), lines), table(("dimension", "", "values"), space)
    )


def _range(row: Mapping[str, Any]) -> str:
    if row["kind"] == "choice":
        return ", ".join(map(str, row["options"]))
    step = "" if row.get("step") in (None, 1) else f" in steps of {row['step']}"
    return f"{row['low']} to {row['high']}{step}"


def _best(directory: Path, study: Mapping[str, Any], best: Mapping[str, Any]) -> Html:
    """The best point, its scores, and the commands to use it and to train it again."""
    run = directory / f"trials/{best['number']:04d}"
    named = directory / "best" if (directory / "best").resolve() == run.resolve() else run
    parts = [paragraph(f"Trial {best['number']}, {study['metric']} {shown(best['value'])}:")]
    parts.append(table(("", ""), [(path, _text(value)) for path, value in best["point"].items()]))
    metrics = (record.read(run, "result.json") or {}).get("metrics", {})
    parts += _scores(metrics)
    commands = [f"jdl evaluate {shlex.quote(str(named))}"] if metrics else []
    if study["experiment"] is not None:
        name = study["experiment"]
        name = name if name in available() else str(named / "experiment.py")
        changes = {**study["overrides"], **best["point"]}
        commands.append(f"jdl train {shlex.quote(name)} {flags(changes)}")
    if commands:
        parts.append(html("<pre>{}</pre>", "\n".join(commands)))
    if not metrics:
        parts.append(paragraph("Its directory is not here but where it was run.", quiet=True))
    return section("The best point", *parts)


def _final(directory: Path) -> list[Html]:
    """Scores of the run on training and validation data together."""
    result = record.read(directory / "final", "result.json")
    if result is None:
        return []
    about = paragraph("The best point, trained on training and validation data together.")
    return [section("In the end", about, *_scores(result["metrics"]))]


def _scores(metrics: Mapping[str, Mapping[str, float]]) -> list[Html]:
    if not metrics:
        return []
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    lines = [[s, *(float(scores.get(n, math.nan)) for n in names)] for s, scores in metrics.items()]
    return [table(("", *names), lines)]


def _pictures(study: Mapping[str, Any], trials: Trials, score: Score, folder: Folder) -> list[Html]:
    about = [paragraph("The order is that in which trials began.")]
    beyond = sum(score.drawn(value) != value for value in search_plots.values_of(trials))
    if beyond:
        count = "One value lies" if beyond == 1 else f"{beyond} values lie"
        about.append(paragraph(f"{count} far beyond the others: drawn on the edge of all plots."))
    picture = folder.picture("history", search_plots.history(trials, score), "Value by trial")
    parts = [
        section("How it went", *about, picture),
        _importance(study, trials, score, folder),
    ]
    dimensions = search_plots.axes_of(study["space"])
    figure = search_plots.slices(trials, dimensions, score)
    parts.append(section("Dimension by dimension", folder.picture("slices", figure, "Slices")))
    done = [trial for trial in trials if trial["state"] == "complete"]
    if len(search_plots.values_of(done)) > 1:
        figure = search_plots.parallel(trials, dimensions, score)
        about = paragraph("A line is a complete trial; the darker, the better; orange is the best.")
        picture = folder.picture("parallel", figure, "Parallel coordinates")
        parts.append(section("All dimensions together", about, picture))
    return parts


def _importance(study: Mapping[str, Any], trials: Trials, score: Score, folder: Folder) -> Html:
    title = "Which dimensions matter"
    done = [t for t in trials if t["state"] == "complete" and search_plots.values_of([t])]
    rows = [row for row in study["space"] if row["name"] == row["path"]]
    varied = [row for row in rows if len({str(t["point"][row["path"]]) for t in done}) > 1]
    if len(done) < ENOUGH:
        said = f"Too few trials to tell: {len(done)} are complete, importance takes {ENOUGH}."
    elif importlib.util.find_spec("optuna") is None:
        said = "This needs an extra: pip install 'jdl-research[search]'."
    elif not varied or np.ptp(search_plots.values_of(done)) == 0:
        said = "Nothing to tell: all complete trials are alike."
    else:
        found = importance(varied, done, score)
        about = (
            f"The share of the variance of {study['metric']} that each dimension explains by "
            f"itself, of what they all so explain: fANOVA (Hutter et al., 2014) on the "
            f"{len(done)} complete trials."
        )
        if len(rows) < len(study["space"]):
            about += " Dimensions that vary in some trials only are left out."
        picture = folder.picture("importance", search_plots.importances(found), title)
        return section(title, paragraph(about), picture)
    return section(title, paragraph(said))


def _table(study: Mapping[str, Any], ranked: Trials) -> Html:
    """Every trial, from the best on, and the first failure."""
    paths = list(dict.fromkeys(row["path"] for row in study["space"]))
    header = ("trial", "", study["metric"], *paths, "seconds")
    lines = [
        [
            trial["number"],
            trial["state"] if trial["state"] == "complete" else _muted(trial["state"]),
            "-" if trial["value"] is None else float(trial["value"]),
            *(_text(trial["point"][p]) if p in trial["point"] else "-" for p in paths),
            "-" if trial["seconds"] is None else f"{trial['seconds']:.1f}",
        ]
        for trial in ranked
    ]
    parts = [table(header, lines[:SHOWN])]
    if len(lines) > SHOWN:
        rest, about = table(header, lines[SHOWN:]), f"{len(lines) - SHOWN} more"
        parts.append(html("<details><summary>{}</summary>{}</details>", about, rest))
    failed = sorted((t for t in ranked if t["state"] == "failed"), key=lambda t: t["number"])
    if failed:
        more = f" {len(failed) - 1} more failed." if len(failed) > 1 else ""
        said = f"Trial {failed[0]['number']} failed: {failed[0]['error']}.{more}"
        parts.insert(0, paragraph(said))
    if any(trial["state"] == "pruned" for trial in ranked):
        about = "The value of a pruned trial is the last that it reported."
        parts.append(paragraph(about, quiet=True))
    return section("All trials", *parts)


def _muted(state: str) -> Html:
    return html('<span class="quiet">{}</span>', state)


def _text(value: Any) -> Any:
    """A value of a point for a table."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
