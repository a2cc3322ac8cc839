"""HTML report of a hyperparameter search, finished or running."""

import importlib.util
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.experiment_file import available, documentation
from jdl.config.overrides import as_flags
from jdl.errors import install_command
from jdl.files import RunDirectory, read_json, read_rows
from jdl.report import plots, search_plots
from jdl.report.page import (
    Folder,
    Html,
    html,
    paragraph,
    scores_table,
    section,
    shown,
    table,
    value_text,
)
from jdl.report.search_plots import Objective, Trials, finite_values, has_value

MIN_TRIALS = 10
"""Complete trials that dimension importance needs."""

MAX_ROWS = 40
"""Trials in the table; the others are folded."""

STATES = ("complete", "pruned", "failed", "running")


def is_search(directory: Path) -> bool:
    """Whether a directory holds a search."""
    return RunDirectory(directory).study.exists()


def write_search_report(directory: Path, out: Path | None = None) -> Path:
    """Writes the report of a search as one HTML page, with PNG files beside it.

    It executes nothing from the directory.

    Args:
      directory: of the search.
      out: the folder to write to; default `report` in the directory.

    Returns:
      The path of the page.

    Raises:
      UserError: a file in the directory cannot be read, or matplotlib is missing.
    """
    plots.require()
    files = RunDirectory(directory)
    study, trials = read_json(files.study), read_rows(files.trials)
    folder = Folder(out or directory / "report")
    minimize = study["direction"] == "minimize"
    objective = search_plots.objective_of(study["metric"], minimize, trials)
    ranked = _ranked(trials, objective)
    parts = [_configuration(study, trials)]
    if ranked and ranked[0]["state"] == "complete":
        parts.append(_best_trial(directory, study, ranked[0]))
        parts += _refit(directory)
    if finite_values(trials):
        parts += _plots(study, trials, objective, folder)
    return folder.page(
        "index.html",
        f"Search {study['study']}",
        *_docstring(directory, ranked),
        *parts,
        _table(study, ranked),
    )


def importance(study: Any, paths: Sequence[str]) -> dict[str, float]:
    """fANOVA importance (Hutter et al., 2014) of parameters that all trials of a study have.

    Returns:
      Shares by parameter, which sum to 1; all 0 if all values are equal.
    """
    from optuna import importance

    evaluator = importance.FanovaImportanceEvaluator(seed=0)
    return dict(importance.get_param_importances(study, evaluator=evaluator, params=list(paths)))


def optuna_study(space: Sequence[Mapping[str, Any]], trials: Trials, objective: Objective) -> Any:
    """An `optuna.Study` in memory with the complete trials, outliers clipped.

    A parameter is a path: one inside several `When`s has the range, or options, of all of them.
    """
    import optuna

    from jdl.sweeps.search.samplers import quiet_optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {
        axis.path: _distribution(axis, [row for row in space if row["path"] == axis.path])
        for axis in search_plots.axes_of(space)
    }
    with quiet_optuna():
        study = optuna.create_study(direction="minimize" if objective.minimize else "maximize")
        for trial in trials:
            if has_value(trial, "complete"):
                used = {path: d for path, d in distributions.items() if path in trial["point"]}
                made = optuna.trial.create_trial(
                    params={path: _value(trial["point"][path], used[path]) for path in used},
                    distributions=used,
                    value=objective.clip(trial["value"]),
                )
                study.add_trial(made)
    return study


def _distribution(axis: search_plots.Axis, rows: Sequence[Mapping[str, Any]]) -> Any:
    from optuna import distributions

    if axis.options:
        return distributions.CategoricalDistribution([plots.plain(o) for o in axis.options])
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    if all(row["kind"] == "int" for row in rows):
        return distributions.IntDistribution(low, high)
    return distributions.FloatDistribution(low, high, log=axis.log)


def _value(value: Any, distribution: Any) -> Any:
    return plots.plain(str(value)) if hasattr(distribution, "choices") else value


def _ranked(trials: Trials, objective: Objective) -> list[Mapping[str, Any]]:
    """Complete trials from best to worst, then pruned ones, then the others."""
    sign = 1 if objective.minimize else -1
    return sorted(
        trials,
        key=lambda trial: (
            STATES.index(trial["state"]),
            sign * trial["value"] if has_value(trial) else math.inf,
            trial["number"],
        ),
    )


def _docstring(directory: Path, ranked: Trials) -> list[Html]:
    """The first line of the experiment file's docstring."""
    kept = [directory / f"trials/{trial['number']:04d}/experiment.py" for trial in ranked]
    file = next((path for path in kept if path.exists()), None)
    return [paragraph(documentation(file).split("\n")[0], quiet=True)] if file else []


def _configuration(study: Mapping[str, Any], trials: Trials) -> Html:
    counts = Counter(trial["state"] for trial in trials)
    found = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"
    seconds = sum(trial["seconds"] or 0.0 for trial in trials)
    better = "lower" if study["direction"] == "minimize" else "higher"
    lines = [
        ("metric", f"{study['metric']} ({better} is better)"),
        ("sampler", study["sampler"]),
        ("pruner", study["pruner"]),
        ("trials", f"{found}; {study['trials']} requested"),
        ("training time", f"{seconds:,.1f} s in total"),
    ]
    if study["constraints"]:
        lines.append(("constraints", ", ".join(study["constraints"])))
    space = [(row["name"], row["kind"].replace("_", " "), _range(row)) for row in study["space"]]
    return section(
        "Configuration", table(("", ""), lines), table(("dimension", "type", "values"), space)
    )


def _range(row: Mapping[str, Any]) -> str:
    if row["kind"] == "choice":
        return ", ".join(map(str, row["options"]))
    step = "" if row.get("step") in (None, 1) else f" in steps of {row['step']}"
    return f"{row['low']} to {row['high']}{step}"


def _best_trial(directory: Path, study: Mapping[str, Any], best: Mapping[str, Any]) -> Html:
    """The best point, its metrics, and the commands that evaluate it and train it again."""
    run = directory / f"trials/{best['number']:04d}"
    named = directory / "best" if (directory / "best").resolve() == run.resolve() else run
    parts = [paragraph(f"Trial {best['number']}, {study['metric']} {shown(best['value'])}:")]
    parts.append(
        table(("", ""), [(path, value_text(value)) for path, value in best["point"].items()])
    )
    metrics = (RunDirectory(run).read_result() or {}).get("metrics", {})
    parts += [scores_table(metrics)] if metrics else []
    commands = [f"jdl evaluate {shlex.quote(str(named))}"] if metrics else []
    if study["experiment"] is not None:
        name = study["experiment"]
        name = name if name in available() else str(named / "experiment.py")
        changes = {**study["overrides"], **best["point"]}
        commands.append(f"jdl train {shlex.quote(name)} {shlex.join(as_flags(changes))}")
    if commands:
        parts.append(html("<pre>{}</pre>", "\n".join(commands)))
    if not metrics:
        parts.append(paragraph("Its run directory is on the machine that trained it.", quiet=True))
    return section("Best trial", *parts)


def _refit(directory: Path) -> list[Html]:
    """Metrics of the run on training and validation data together."""
    result = RunDirectory(directory / "refit").read_result()
    if result is None:
        return []
    about = paragraph("The best point, trained on training and validation data together.")
    return [
        section("Refit on training and validation data", about, scores_table(result["metrics"]))
    ]


def _plots(
    study: Mapping[str, Any], trials: Trials, objective: Objective, folder: Folder
) -> list[Html]:
    about = [paragraph("Trials are numbered in the order in which they started.")]
    clipped = sum(objective.clip(value) != value for value in finite_values(trials))
    if clipped:
        about.append(paragraph(f"Outliers clipped to the edge of all plots: {clipped}."))
    picture = folder.picture("history", search_plots.history(trials, objective), "Value by trial")
    axes = search_plots.axes_of(study["space"])
    slices = search_plots.slices(trials, axes, objective)
    parts = [
        section("Optimization history", *about, picture),
        section("Slice plot", folder.picture("slices", slices, "Value by dimension")),
    ]
    done = finite_values(trials, "complete")
    if importlib.util.find_spec("optuna") is None:
        about = paragraph(f"They need an extra: {install_command('search')}.")
        return [*parts, section("Hyperparameter importance and parallel coordinates", about)]
    made = optuna_study(study["space"], trials, objective)
    parts.insert(1, _importance(study, trials, made, folder))
    if len(done) > 1:
        figure = search_plots.parallel_coordinates(made, objective.name)
        about = paragraph("Each line is a complete trial; darker is better.")
        picture = folder.picture("parallel", figure, "Parallel coordinates")
        parts.append(section("Parallel coordinates", about, picture))
    return parts


def _importance(study: Mapping[str, Any], trials: Trials, made: Any, folder: Folder) -> Html:
    title = "Hyperparameter importance"
    done = [trial for trial in trials if has_value(trial, "complete")]
    paths = [row["path"] for row in study["space"] if row["name"] == row["path"]]
    varied = [path for path in paths if len({str(t["point"][path]) for t in done}) > 1]
    if len(done) < MIN_TRIALS:
        about = f"Not computed: {len(done)} trials are complete, {MIN_TRIALS} are needed."
        return section(title, paragraph(about))
    if not varied or np.ptp(finite_values(done)) == 0:
        return section(title, paragraph("Not computed: all complete trials are equal."))
    about = (
        f"fANOVA (Hutter et al., 2014) on {len(done)} complete trials: the share of the variance "
        f"of {study['metric']} that each dimension explains alone, normalized to sum to 1."
    )
    if len(paths) < len(study["space"]):
        about += " Conditional dimensions are left out."
    figure = search_plots.importances(importance(made, varied))
    return section(title, paragraph(about), folder.picture("importance", figure, title))


def _table(study: Mapping[str, Any], ranked: Trials) -> Html:
    """All trials from best to worst, with the first failure."""
    paths = list(dict.fromkeys(row["path"] for row in study["space"]))
    header = ("trial", "state", study["metric"], *paths, "seconds")
    lines = [
        [
            trial["number"],
            trial["state"] if trial["state"] == "complete" else _muted(trial["state"]),
            "-" if trial["value"] is None else float(trial["value"]),
            *(value_text(trial["point"][p]) if p in trial["point"] else "-" for p in paths),
            "-" if trial["seconds"] is None else f"{trial['seconds']:.1f}",
        ]
        for trial in ranked
    ]
    parts = [table(header, lines[:MAX_ROWS])]
    if len(lines) > MAX_ROWS:
        rest, about = table(header, lines[MAX_ROWS:]), f"{len(lines) - MAX_ROWS} more"
        parts.append(html("<details><summary>{}</summary>{}</details>", about, rest))
    failed = sorted((t for t in ranked if t["state"] == "failed"), key=lambda t: t["number"])
    if failed:
        more = f" {len(failed) - 1} more failed." if len(failed) > 1 else ""
        about = f"Trial {failed[0]['number']} failed: {failed[0]['error']}.{more}"
        parts.insert(0, paragraph(about))
    if any(trial["state"] == "pruned" for trial in ranked):
        parts.append(paragraph("The value of a pruned trial is the last one reported.", quiet=True))
    return section("All trials", *parts)


def _muted(text: str) -> Html:
    return html('<span class="quiet">{}</span>', text)
