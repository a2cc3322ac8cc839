"""Refits the best point of a search on training and validation data, and scores it on test."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from jdl.checkpoint import CheckpointStore
from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import fields, flatten, override, paths, snake
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, json_value, read_json
from jdl.hooks import Checkpoint, Hook
from jdl.sweeps.search.tuning import SearchResult
from jdl.trainer.api import train
from jdl.trainer.run import Run
from jdl.typing import Json


def refit(
    result: SearchResult,
    experiment: Experiment,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
) -> Run:
    """Trains the best point on training and validation data together, in the folder `refit`.

    It makes as many passes over the data as the best trial made up to its final weights
    (Goodfellow et al., 2016, algorithm 7.2). Hooks that need a validation split are left out. The
    test split is read once, at the end. A finished run is returned, an interrupted one resumed.

    Args:
      result: of `tune`.
      experiment: as given to `tune`.
      file: the experiment's file.
      overrides: of the experiment, by path.

    Returns:
      The run.

    Raises:
      UserError: the validation split cannot be merged into training, the best trial's run is in
        another directory, or `refit` holds another point.
    """
    assert result.best is not None
    best, workdir = result.workdir / "best", result.workdir / "refit"
    number = f"{result.best.number:04d}"
    if not RunDirectory(best).result.exists() or best.resolve().name != number:
        raise UserError(
            f"the run of the best trial, {number}, is not in {result.workdir}: use --refit in the "
            f"directory that trained it"
        )
    point = override(experiment, result.best.point)
    changes = {**merge_validation(point), **without_validation(point.hooks)}
    changes["steps"] = _steps(best, override(point, changes))
    experiment = override(point, changes)
    known = {**(overrides or {}), **result.best.point}
    if "hooks" in changes:  # they list every hook, with its fields
        known = {path: value for path, value in known.items() if path.split(".")[0] != "hooks"}
    wanted = {**known, **changes}
    found = read_json(RunDirectory(workdir).overrides)
    if found is not None and found != json_value(wanted):
        raise UserError(
            f"{workdir} holds another point than the best trial's, {number}: move it away to train "
            f"this one too, and to read the test split again"
        )
    return train(experiment, workdir, file=file, overrides=wanted)


def merge_validation(experiment: Experiment) -> dict[str, Json]:
    """The overrides that turn validation examples into training examples.

    Raises:
      UserError: no override of a `validation_fraction` does.
    """
    before = Splits(experiment.data)
    if "validation" not in before.names:
        return {}
    found = paths(experiment.data, "data")
    changes: dict[str, Json] = {p: 0.0 for p in found if p.endswith(".validation_fraction")}
    wanted = {name: before.count(name) for name in before.names}
    wanted["train"] += wanted.pop("validation")
    try:
        after = Splits(override(experiment, changes).data)
        counts = {name: after.count(name) for name in after.names}
    except UserError:
        counts = {}
    if counts != wanted:
        raise UserError(
            f"the validation split of {experiment.data.full_name()} cannot be merged into "
            f"training for --refit: data.validation_fraction did not hold it out"
        )
    return changes


def without_validation(hooks: Sequence[Hook]) -> dict[str, Json]:
    """The overrides that remove hooks which monitor a validation metric."""
    kept: list[Hook] = []
    for hook in hooks:
        if not str(getattr(hook, "metric", "")).startswith("validation."):
            kept.append(hook)
        elif isinstance(hook, Checkpoint):
            kept.append(dataclasses.replace(hook, best=0))
    if kept == list(hooks):
        return {}
    changes: dict[str, Json] = {"hooks": [snake(type(hook).__name__) for hook in kept]}
    for index, hook in enumerate(kept):
        for field in fields(hook):
            value = getattr(hook, field.name)
            if value != field.default:
                changes |= flatten(value, f"hooks.{index}.{field.name}")
    return changes


def _steps(best: Path, experiment: Experiment) -> int:
    """The steps for as many passes over the new training split as the trial made over its own."""
    directory = RunDirectory(best)
    store = CheckpointStore(directory.checkpoints)
    try:
        step = store.evaluation_step()
    finally:
        store.close()
    if step is None:
        raise UserError(f"{best} has no checkpoint")
    before = read_json(directory.environment)["data"]["train"]["count"]
    return max(1, round(step * Splits(experiment.data).count("train") / before))
