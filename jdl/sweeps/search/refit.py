"""The best point of a search, trained on all there is to learn from and scored on test."""

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
from jdl.sweeps.search.tuning import Study
from jdl.trainer.api import train
from jdl.trainer.run import Run
from jdl.typing import Json


def train_final(
    study: Study,
    experiment: Experiment,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
) -> Run:
    """Trains the best point of a study on training and validation data together, in `final`.

    It takes as many passes over them as the best trial took over its training data, up to the
    weights that it ended with (Goodfellow et al., 2016, algorithm 7.2). Hooks that need a
    validation split are left out. At the end the test split is read, once: a run that has ended is
    returned as it is, one that was broken off goes on.

    Args:
      study: what `tune` gave.
      experiment: what it was given.
      file: where the experiment comes from.
      overrides: what was changed in the experiment of that file, by path.

    Returns:
      The run, an ordinary one.

    Raises:
      UserError: the validation split cannot be joined to training; the best trial lies in another
        directory; or `final` holds the point of another trial.
    """
    assert study.best is not None
    best, workdir = study.workdir / "best", study.workdir / "final"
    number = f"{study.best.number:04d}"
    if not RunDirectory(best).result.exists() or best.resolve().name != number:
        raise UserError(
            f"the best trial, {number}, does not lie in {study.workdir} but where it was run: ask "
            f"there for --final"
        )
    point = override(experiment, study.best.point)
    changes = {**joined(point), **without_validation(point.hooks)}
    changes["steps"] = _steps(best, override(point, changes))
    final = override(point, changes)
    known = {**(overrides or {}), **study.best.point}
    if "hooks" in changes:  # which say all of them
        known = {path: value for path, value in known.items() if path.split(".")[0] != "hooks"}
    wanted = {**known, **changes}
    found = read_json(RunDirectory(workdir).overrides)
    if found is not None and found != json_value(wanted):
        raise UserError(
            f"{workdir} holds the point of another trial than the best, {number}: move it away to "
            f"train this one too, and to read the test split again"
        )
    return train(final, workdir, file=file, overrides=wanted)


def joined(experiment: Experiment) -> dict[str, Json]:
    """The overrides by which the validation examples become training examples.

    Raises:
      UserError: there are none that do.
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
            f"the validation split of {experiment.data.describe()} cannot be joined to training, "
            f"as --final asks: it is not one that data.validation_fraction holds out"
        )
    return changes


def without_validation(hooks: Sequence[Hook]) -> dict[str, Json]:
    """The overrides that leave out hooks which act on scores of validation."""
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
    """Steps that make as many passes as a trial's did, over the training split there is now."""
    directory = RunDirectory(best)
    store = CheckpointStore(directory.checkpoints)
    try:
        step = store.evaluation_step()
    finally:
        store.close()
    if step is None:
        raise UserError(f"{best} holds no checkpoint")
    before = read_json(directory.environment)["data"]["train"]["count"]
    return max(1, round(step * Splits(experiment.data).count("train") / before))
