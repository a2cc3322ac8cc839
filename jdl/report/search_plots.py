"""Figures of a search: how its score went, and how it goes with what was varied."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.report.plots import empty, plain

Trials = Sequence[Mapping[str, Any]]
"""Rows of `study.jsonl`."""

BEST, PRUNED, FAILED = "tab:orange", "0.6", "tab:red"
"""Colours."""

FAR = 10.0
"""A value is beyond the edge where it lies so many times as far from the best as most do."""


@dataclass(frozen=True)
class Score:
    """What trials were judged by.

    Attributes:
      name: SPLIT.NAME.
      lower: whether less is better.
      edge: the worst value that is drawn where it is; worse ones are drawn there.
    """

    name: str
    lower: bool
    edge: float

    def best(self, values: Sequence[float]) -> float:
        """The best of some values."""
        return min(values) if self.lower else max(values)

    def drawn(self, value: float) -> float:
        """Where a value is drawn."""
        return min(value, self.edge) if self.lower else max(value, self.edge)


def score_of(name: str, lower: bool, trials: Trials) -> Score:
    """How a study's values are drawn: of a few that diverged only that they did is shown."""
    values = values_of(trials)
    if not values:
        return Score(name, lower, math.inf if lower else -math.inf)
    best = min(values) if lower else max(values)
    far = np.abs(np.array(values) - best)
    most = float(np.quantile(far, 0.75, method="nearest"))
    kept = far[far <= (FAR * most or math.inf)]
    return Score(name, lower, best + (1 if lower else -1) * float(kept.max()))


def values_of(trials: Trials) -> list[float]:
    """The values that can be drawn."""
    found = [trial["value"] for trial in trials]
    return [value for value in found if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Axis:
    """A dimension as an axis.

    Attributes:
      path: of the field.
      log: whether its orders of magnitude are as likely.
      options: of a choice, in their order; empty for numbers.
    """

    path: str
    log: bool
    options: tuple[str, ...]

    def place(self, trial: Mapping[str, Any]) -> float:
        """Where a trial lies on it; NaN where the dimension did not vary."""
        if self.path not in trial["point"]:
            return math.nan
        value = trial["point"][self.path]
        return float(self.options.index(str(value)) if self.options else value)

    def scaled(self, places: np.ndarray) -> np.ndarray:
        """Places brought to [0, 1]."""
        places = np.log(places) if self.log else places
        if np.isnan(places).all():
            return places
        low, high = self._ends(places)
        return (places - low) / (high - low) if high > low else places - low + 0.5

    def label(self, axes: Any) -> None:
        """Makes the horizontal axis of a panel this one."""
        if self.log:
            axes.set_xscale("log")
        if self.options:
            axes.set_xticks(range(len(self.options)), [plain(o, 14) for o in self.options])
            axes.set_xlim(-0.5, len(self.options) - 0.5)
            crowded = sum(len(o) for o in self.options) > 24
            axes.tick_params(axis="x", labelrotation=30 if crowded else 0)
        axes.set_xlabel(plain(self.path, 40))

    def _ends(self, places: np.ndarray) -> tuple[float, float]:
        if self.options:
            return 0.0, len(self.options) - 1.0
        return float(np.nanmin(places)), float(np.nanmax(places))


def axes_of(space: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """The axes of the dimensions that `study.json` lists, one a path."""
    options: dict[str, list[str]] = {}
    logs: dict[str, bool] = {}
    for row in space:
        known = options.setdefault(row["path"], [])
        known += [str(o) for o in row.get("options", ()) if str(o) not in known]
        logs[row["path"]] = logs.get(row["path"], True) and row["kind"] == "log_uniform"
    return [Axis(path, logs[path], tuple(found)) for path, found in options.items()]


def history(trials: Trials, score: Score) -> Any:
    """The value of each trial in the order in which they began, and the best so far."""
    figure = empty(8.5, 3.6)
    axes = figure.add_subplot()
    numbers = [float(trial["number"]) for trial in trials]
    _scatter(axes, trials, numbers, score)
    done = _ended(trials, "complete")
    so_far = [score.best(values_of(done[: count + 1])) for count in range(len(done))]
    if done:
        steps = [trial["number"] for trial in done] + [max(numbers)]
        line = [score.drawn(value) for value in [*so_far, so_far[-1]]]
        axes.step(steps, line, where="post", color=BEST, linewidth=1.6, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(plain(score.name))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes)
    return figure


def slices(trials: Trials, dimensions: Sequence[Axis], score: Score) -> Any:
    """A panel per dimension: the value of each trial by where it lies."""
    columns = min(3, len(dimensions))
    rows = math.ceil(len(dimensions) / columns)
    figure = empty(1.2 + 3.2 * columns, 3.1 * rows)
    first = None
    for index, axis in enumerate(dimensions):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=first)
        first = first or axes
        _scatter(axes, trials, [axis.place(trial) for trial in trials], score)
        axis.label(axes)
        if index % columns == 0:
            axes.set_ylabel(plain(score.name))
    _legend(figure, first)
    return figure


def parallel(trials: Trials, dimensions: Sequence[Axis], score: Score) -> Any:
    """A line per complete trial through its place on every dimension to its value, best on top."""
    done = sorted(_ended(trials, "complete"), key=lambda t: t["value"], reverse=score.lower)
    values = np.array([score.drawn(trial["value"]) for trial in done])
    figure = empty(min(13.0, 3.5 + 1.7 * len(dimensions)), 4.2)
    axes = figure.add_subplot()
    columns = [axis.scaled(np.array([axis.place(t) for t in done])) for axis in dimensions]
    last = Axis(score.name, False, ())
    columns.append(last.scaled(values))
    places = np.nan_to_num(np.stack(columns), nan=-0.15)  # below, where it did not vary
    ranks = np.linspace(1, 0, len(done)) if len(done) > 1 else np.zeros(1)
    colors = _colors(ranks)
    for index, color in enumerate(colors):
        top = index == len(done) - 1
        axes.plot(places[:, index], color=BEST if top else color, linewidth=2.4 if top else 1.1,
                  alpha=1.0 if top else 0.75)  # fmt: skip
    for place, axis in enumerate([*dimensions, last]):
        axes.axvline(place, color="0.3", linewidth=0.8)
        known = [axis.place(t) for t in done] if place < len(dimensions) else list(values)
        _write_ends(axes, place, axis, known)
    if np.isnan(np.stack(columns)).any():
        axes.set_yticks([-0.15], ["not varied"])
    else:
        axes.set_yticks([])
    names = [plain(axis.path, 26) for axis in [*dimensions, last]]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_xlim(-0.3, len(names) - 0.55)
    axes.set_frame_on(False)
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


def _scatter(axes: Any, trials: Trials, places: Sequence[float], score: Score) -> None:
    """Trials at their places: complete, pruned at what they reached, failed beyond the worst."""
    where = dict(zip((trial["number"] for trial in trials), places, strict=True))
    looks = {
        "complete": {"color": "tab:blue", "s": 22, "alpha": 0.8, "linewidths": 0},
        "pruned": {"facecolors": "none", "edgecolors": PRUNED, "s": 22},
    }
    for state, look in looks.items():
        found = _ended(trials, state)
        if found:
            values = [score.drawn(trial["value"]) for trial in found]
            axes.scatter([where[t["number"]] for t in found], values, label=state, **look)
    failed = [where[trial["number"]] for trial in trials if trial["state"] == "failed"]
    if failed:
        drawn = [score.drawn(value) for value in values_of(trials)]
        best, worst = sorted([min(drawn), max(drawn)], reverse=not score.lower)
        height = [worst + 0.08 * (worst - best)] * len(failed)
        axes.scatter(failed, height, label="failed", color=FAILED, marker="x", s=22)
    axes.grid(alpha=0.25)


def _legend(figure: Any, axes: Any) -> None:
    found = axes.get_legend_handles_labels()
    figure.legend(*found, loc="outside upper right", ncols=4, fontsize="small", frameon=False)


def _ended(trials: Trials, state: str) -> list[Mapping[str, Any]]:
    """Those of a state that have a value that can be drawn."""
    return [trial for trial in trials if trial["state"] == state and values_of([trial])]


def _colors(ranks: np.ndarray) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](ranks)  # the best is the darkest


def _write_ends(axes: Any, place: int, axis: Axis, known: Sequence[float]) -> None:
    """Writes on a vertical axis what its ends are, of a choice all options."""
    small = {"fontsize": 8, "ha": "left", "color": "0.15"}
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    if axis.options:
        heights = axis.scaled(np.arange(len(axis.options), dtype=float))
        texts = [plain(option, 14) for option in axis.options]
    else:
        finite = [value for value in known if math.isfinite(value)]
        ends = sorted({min(finite), max(finite)}) if finite else []
        heights = np.array([0.0, 1.0]) if len(ends) == 2 else np.full(len(ends), 0.5)
        texts = [f"{value:.4g}" for value in ends]
    for height, text in zip(heights, texts, strict=True):
        axes.text(place + 0.03, height, text, va="center", bbox=box, **small)
