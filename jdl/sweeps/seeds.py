"""Trains an experiment with several seeds and summarizes the results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.experiment_file import ExperimentFile
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, write_json
from jdl.sweeps.jobs import Job, Outcome, Vectorize, train_jobs
from jdl.typing import Json


def train_seeds(
    experiment: Experiment,
    count: int,
    workdir: Path,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    vectorize: Vectorize = "never",
) -> dict[str, Json]:
    """Trains with `count` seeds, starting at the experiment's own, each in its run directory.

    Args:
      experiment: what to train.
      count: number of seeds.
      workdir: directory of `seed-0`, `seed-1` ... and `summary.json`.
      file: the experiment's file.
      overrides: what was changed in it, by path.
      vectorize: whether to train all in one vmapped step (`jdl.sweeps.jobs`).

    Returns:
      The contents of `summary.json`: `mean`, `std` (of the sample), `min`, `max` and `n` of each
      metric of each split, and the seconds of a run.
    """
    if count < 1:
        raise UserError(f"seeds must be at least 1, not {count}")
    seeds = range(experiment.seed, experiment.seed + count)
    data = Splits(experiment.data)
    jobs = [
        Job(
            experiment=dataclasses.replace(experiment, seed=seed),
            workdir=workdir / f"seed-{seed}",
            overrides={**(overrides or {}), "seed": seed},
            data=data,
        )
        for seed in seeds
    ]
    results = _results(jobs, vectorize, file)
    splits = results[0]["metrics"]
    summary = {
        "experiment": results[0]["experiment"],
        "seeds": list(seeds),
        "metrics": {
            split: {
                name: spread([result["metrics"][split][name] for result in results])
                for name in metrics
            }
            for split, metrics in splits.items()
        },
        "train_metrics": results[0]["train_metrics"],
        "seconds": spread([result["seconds"] for result in results]),
        "device": results[0]["device"],
        "versions": results[0]["versions"],
    }
    write_json(RunDirectory(workdir).summary, summary)
    return summary


def _results(
    jobs: Sequence[Job], vectorize: Vectorize, file: ExperimentFile | None
) -> list[dict[str, Json]]:
    """Returns the result of each job; raises the first error."""
    results: dict[int, dict[str, Json]] = {}
    failures: list[Exception] = []

    def callback(index: int, outcome: Outcome) -> bool:
        if isinstance(outcome, Exception):
            failures.append(outcome)
        else:
            results[index] = outcome.result
        return not failures

    train_jobs(jobs, vectorize, callback, file=file)
    if failures:
        raise failures[0]
    return [result for _, result in sorted(results.items())]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, sample standard deviation, extremes and count; NaN where one value is."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        "n": len(array),
    }
