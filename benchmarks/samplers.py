"""Samplers of a search at equal budget: `python -m benchmarks.samplers [EXPERIMENT] --out DIR`.

Each searches the space that stands beside the experiment, again and again, each time with another
seed of the experiment and of what is drawn. Written are the best value after each trial, as JSON
lines, and a picture of them. It resumes after an interruption.
"""

import importlib.util
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from jdl.errors import UserError
from jdl.files import to_json


def search(
    experiment: str, sampler: str, seed: int, trials: int, metric: str, workdir: Path
) -> list[float]:
    """The best value after each trial of a finished search."""
    import jdl

    file = jdl.load(experiment)
    study = jdl.tune(
        jdl.override(file.experiment, {"seed": seed}),
        file.space,
        constraints=file.constraints,
        sampler=sampler,
        trials=trials,
        metric=metric,
        mode="min",
        workdir=workdir,
        notify=lambda line: None,
    )
    values = [trial.value for trial in study.trials if trial.value is not None]
    return np.minimum.accumulate(values).tolist()


def _searched(arguments: tuple[Any, ...]) -> list[float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return search(*arguments)


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each sampler: the median of its best values, and how often it beat random's."""
    ends: dict[str, list[float]] = {}
    for row in rows:
        ends.setdefault(row["sampler"], []).append(row["best"][-1])
    lines = []
    for name, found in ends.items():
        low, median, high = np.percentile(found, (25, 50, 75))
        line = f"{name}: best {median:.4f} [{low:.4f}, {high:.4f}] after {len(rows[0]['best'])}"
        if name != "random" and "random" in ends:
            wins = int(np.sum(np.array(found) < np.median(ends["random"])))
            line += f"; below random's median in {wins} of {len(found)} searches"
        lines.append(line)
    return lines


def draw(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Plots the median and the interquartile range of the best values after each trial."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name in dict.fromkeys(row["sampler"] for row in rows):
        best = np.array([row["best"] for row in rows if row["sampler"] == name])
        low, median, high = np.percentile(best, (25, 50, 75), axis=0)
        count = np.arange(1, best.shape[1] + 1)
        (line,) = axes.plot(count, median, label=f"{name}, median of {len(best)} searches")
        axes.fill_between(count, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(yscale="log", xlabel="trials", ylabel=f"best {metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(
    experiment: Positional[str] = "digits_mlp_search",
    /,
    *,
    out: Path,
    samplers: tuple[str, ...] = ("random", "tpe", "gp"),
    repeats: int = 20,
    trials: int = 20,
    metric: str = "validation.loss",
    jobs: int = 2,
) -> None:
    """Compares samplers.

    Args:
        experiment: with a space beside it.
        out: a directory for samplers.jsonl, samplers.png and the searches themselves.
        samplers: to compare; gp is skipped if torch is not installed.
        repeats: searches of each sampler.
        trials: of each search.
        metric: SPLIT.NAME to minimize.
        jobs: searches that run at once.
    """
    if importlib.util.find_spec("torch") is None:
        samplers = tuple(name for name in samplers if name != "gp")
    cases = [(name, seed) for seed in range(repeats) for name in samplers]
    work = [
        (experiment, name, seed, trials, metric, out / "searches" / f"{name}-{seed}")
        for name, seed in cases
    ]
    rows = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for (name, seed), best in zip(cases, pool.map(_searched, work), strict=True):
            rows.append({"sampler": name, "seed": seed, "metric": metric, "best": best})
            print(f"{name}, seed {seed}: {best[-1]:.4f}", flush=True)
    (out / "samplers.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    draw(rows, metric, out / "samplers.png")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.samplers")
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
