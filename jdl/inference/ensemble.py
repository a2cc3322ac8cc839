"""Deep ensembles: the mean prediction of several seeds (Lakshminarayanan et al., 2017)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.errors import UserError
from jdl.files import RunDirectory
from jdl.tasks import BinaryClassification, Classification, MultiLabelClassification, Regression
from jdl.trainer.opening import restore_run
from jdl.trainer.record import read_run
from jdl.trainer.run import Run

AVERAGED = (Classification, BinaryClassification, MultiLabelClassification, Regression)
"""Tasks whose predictions can be averaged."""


def seed_directories(workdir: Path) -> list[Path]:
    """Returns the directories of the seeds in the directory of `jdl train --seeds`, else none."""
    files = RunDirectory(workdir)
    summary = None if files.experiment.exists() else files.read_summary()
    return [] if summary is None else [workdir / f"seed-{seed}" for seed in summary["seeds"]]


def open_ensemble(directories: Sequence[Path], experiment: Path | None = None) -> list[Run]:
    """Opens the runs of several seeds, whose conformal sets, of each alone, are left out.

    Raises:
      UserError: predictions of their task cannot be averaged.
    """
    runs = [restore_run(each, read_run(each, experiment).experiment) for each in directories]
    for run in runs:
        task = run.experiment.task
        if not isinstance(task, AVERAGED):
            raise UserError(
                f"predictions of the task {type(task).__name__} are not averaged over seeds: name "
                f"one run, such as {directories[0]}"
            )
        if getattr(task, "conformal", None) is not None:
            task: Any = dataclasses.replace(task, conformal=None)
            run.experiment = dataclasses.replace(run.experiment, task=task)
    return runs


def predict_mean(runs: Sequence[Run], arrays: Any) -> Any:
    """Returns the mean of the predictions of runs, as `Run.predict` returns one."""
    found = [run.predict(arrays) for run in runs]
    return jax.tree.map(lambda *each: np.mean(each, axis=0), *found)
