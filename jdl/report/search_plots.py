"""Plots of a hyperparameter search: metric by trial, by dimension, and dimension importance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.report.plots import empty, plain

Trials = Sequence[Mapping[str, Any]]
"""Rows of `study.jsonl`."""

BEST, PRUNED, FAILED = "tab:orange", "0.6", "tab:red"
"""Colors."""

OUTLIER = 10.0
"""A value is an outlier if it is this many times farther from the best than three quarters are."""


@dataclass(frozen=True)
class Objective:
    """The metric that trials are ranked by, and the range in which it is plotted."""

    name: str  # SPLIT.NAME
    minimize: bool  # whether lower is better
    limit: float  # the worst value on the plots; outliers are clipped to it

    def best(self, values: Sequence[float]) -> float:
        """The best of some values."""
        return min(values) if self.minimize else max(values)

    def clip(self, value: float) -> float:
        """A value where it is plotted."""
        return min(value, self.limit) if self.minimize else max(value, self.limit)


def objective_of(name: str, minimize: bool, trials: Trials) -> Objective:
    """The objective of a study, with outliers clipped so that a diverged trial flattens no plot."""
    values = finite_values(trials)
    sign = 1 if minimize else -1
    if not values:
        return Objective(name, minimize, sign * math.inf)
    best = min(values) if minimize else max(values)
    distances = np.abs(np.array(values) - best)
    usual = float(np.quantile(distances, 0.75, method="nearest"))
    kept = distances[distances <= (OUTLIER * usual or math.inf)]
    return Objective(name, minimize, best + sign * float(kept.max()))


def finite_values(trials: Trials, state: str | None = None) -> list[float]:
    """The finite values of trials, or of those in one state."""
    return [trial["value"] for trial in trials if has_value(trial, state)]


def has_value(trial: Mapping[str, Any], state: str | None = None) -> bool:
    """Whether a trial has a finite value, and is in that state if one is given."""
    value = trial["value"]
    return value is not None and math.isfinite(value) and state in (None, trial["state"])


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a dimension."""

    path: str  # of the field
    log: bool  # whether it is logarithmic
    options: tuple[str, ...]  # of a choice, in order; empty for numbers

    def position(self, trial: Mapping[str, Any]) -> float:
        """The position of a trial; NaN if the dimension did not vary in it."""
        if self.path not in trial["point"]:
            return math.nan
        value = trial["point"][self.path]
        return float(self.options.index(str(value)) if self.options else value)

    def format(self, axes: Any) -> None:
        """Sets scale, ticks and label of matplotlib axes."""
        if self.log:
            axes.set_xscale("log")
        if self.options:
            axes.set_xticks(range(len(self.options)), [plain(o, 14) for o in self.options])
            axes.set_xlim(-0.5, len(self.options) - 0.5)
            crowded = sum(len(o) for o in self.options) > 24
            axes.tick_params(axis="x", labelrotation=30 if crowded else 0)
        axes.set_xlabel(plain(self.path, 40))


def axes_of(space: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """One axis for each path in the `space` of `study.json`.

    A path inside several `When`s is one axis with the options of all of them.
    """
    options: dict[str, list[str]] = {}
    logs: dict[str, bool] = {}
    for row in space:
        known = options.setdefault(row["path"], [])
        known += [str(o) for o in row.get("options", ()) if str(o) not in known]
        logs[row["path"]] = logs.get(row["path"], True) and row["kind"] == "log_uniform"
    return [Axis(path, logs[path], tuple(found)) for path, found in options.items()]


def history(trials: Trials, objective: Objective) -> Any:
    """Value by trial number, with the best value so far."""
    figure = empty(8.5, 3.6)
    axes = figure.add_subplot()
    numbers = [float(trial["number"]) for trial in trials]
    _scatter(axes, trials, numbers, objective)
    done = [trial for trial in trials if has_value(trial, "complete")]
    if done:
        values = finite_values(done)
        line = [objective.clip(objective.best(values[: end + 1])) for end in range(len(values))]
        steps = [trial["number"] for trial in done] + [max(numbers)]
        axes.step(steps, [*line, line[-1]], where="post", color=BEST, linewidth=1.6,
                  label="best so far")  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_ylabel(plain(objective.name))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes)
    return figure


def slices(trials: Trials, dimensions: Sequence[Axis], objective: Objective) -> Any:
    """A panel per dimension: value by position on it."""
    columns = min(3, len(dimensions))
    rows = math.ceil(len(dimensions) / columns)
    figure = empty(1.2 + 3.2 * columns, 3.1 * rows)
    first = None
    for index, axis in enumerate(dimensions):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=first)
        first = first or axes
        _scatter(axes, trials, [axis.position(trial) for trial in trials], objective)
        axis.format(axes)
        if index % columns == 0:
            axes.set_ylabel(plain(objective.name))
    _legend(figure, first)
    return figure


def parallel_coordinates(study: Any, name: str) -> Any:
    """Optuna's parallel coordinates of an `optuna.Study` whose metric has that name."""
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    from jdl.sweeps.search.samplers import quiet_optuna

    with quiet_optuna(), plt.rc_context():  # Optuna sets a style for the whole process
        axes = plot_parallel_coordinate(study, target_name=plain(name))
        axes.set_title("")
        figure: Any = axes.get_figure()
        plt.close(figure)
    figure.set_size_inches(min(13.0, 3.5 + 0.85 * len(figure.axes)), 4.2)
    return figure


def importances(found: Mapping[str, float]) -> Any:
    """A bar per dimension, the most important on top."""
    figure = empty(7.5, 0.9 + 0.36 * len(found))
    axes = figure.add_subplot()
    names = sorted(found, key=lambda name: found[name])
    bars = axes.barh([plain(name, 40) for name in names], [found[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xlim(0, max(1.1 * max(found.values()), 1e-6))
    axes.set_xlabel("importance")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scatter(axes: Any, trials: Trials, positions: Sequence[float], objective: Objective) -> None:
    """Plots trials: pruned ones at their last value, failed ones beyond the worst value."""
    where = dict(zip((trial["number"] for trial in trials), positions, strict=True))
    looks = {
        "complete": {"color": "tab:blue", "s": 22, "alpha": 0.8, "linewidths": 0},
        "pruned": {"facecolors": "none", "edgecolors": PRUNED, "s": 22},
    }
    for state, look in looks.items():
        found = [trial for trial in trials if has_value(trial, state)]
        if found:
            values = [objective.clip(trial["value"]) for trial in found]
            axes.scatter([where[t["number"]] for t in found], values, label=state, **look)
    failed = [where[trial["number"]] for trial in trials if trial["state"] == "failed"]
    if failed:
        plotted = [objective.clip(value) for value in finite_values(trials)]
        best, worst = sorted([min(plotted), max(plotted)], reverse=not objective.minimize)
        height = [worst + 0.08 * (worst - best)] * len(failed)
        axes.scatter(failed, height, label="failed", color=FAILED, marker="x", s=22)
    axes.grid(alpha=0.25)


def _legend(figure: Any, axes: Any) -> None:
    found = axes.get_legend_handles_labels()
    figure.legend(*found, loc="outside upper right", ncols=4, fontsize="small", frameon=False)
