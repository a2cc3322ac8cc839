"""Scores by the number of training examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import override
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.sweeps.seeds import train_seeds
from jdl.typing import Json

Same = Literal["steps", "epochs"]
"""What runs on parts of the data have in common."""


@dataclass(frozen=True)
class Point:
    """Runs on a part of the training data.

    Attributes:
      fraction: of the training split.
      examples: number of training examples.
      steps: of each run.
      summary: of the seeds, as `train_seeds` returns it.
    """

    fraction: float
    examples: int
    steps: int
    summary: Mapping[str, Any]


def data_curve(
    experiment: Experiment,
    fractions: Sequence[float],
    seeds: int,
    workdir: Path,
    *,
    same: Same = "steps",
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
) -> list[Point]:
    """Trains on parts of the training split, the smaller within the larger, with several seeds.

    Validation and test splits are always the same, and hooks act as often as in the whole run.

    Args:
      experiment: what to train.
      fractions: shares of the training split, above 0 and at most 1.
      seeds: runs of each.
      workdir: directory of a directory for each fraction, as `train_seeds` writes it; finished runs
        in it are read, unfinished ones resumed.
      same: `steps` trains for as many steps on a part as on the whole, which isolates the effect
        of the data; `epochs` for as many passes, which also costs less.
      file: the experiment's file.
      overrides: what was changed in it, by path.

    Returns:
      A point for each fraction, in rising order.

    Raises:
      UserError: a fraction is not of this range, leaves no examples, or the data set has none.
    """
    path = experiment.data.fraction_path()
    if path is None:
        raise UserError(
            f"the data {type(experiment.data).__name__} cannot be reduced to a part: a learning "
            f"curve needs a data set with a train_fraction"
        )
    path = ".".join(filter(None, ("data", path, "train_fraction")))
    if not fractions or len({*fractions}) < len(fractions):
        raise UserError(f"a curve needs different fractions of the data, not {tuple(fractions)}")
    # All fractions are checked before the first is trained.
    parts = {part: override(experiment, {path: part}) for part in sorted(fractions)}
    whole = Splits(override(experiment, {path: 1.0}).data).epoch_size
    points = []
    for part, changed in parts.items():
        examples = Splits(changed.data).epoch_size
        changes = {path: part, **(_same_steps(experiment, whole) if same == "steps" else {})}
        changed = override(experiment, changes)
        summary = train_seeds(
            changed,
            seeds,
            workdir / f"{part:g}",
            file=file,
            overrides={**(overrides or {}), **changes},
        )
        points.append(Point(part, examples, changed.total_steps(examples), summary))
    return points


def _same_steps(experiment: Experiment, examples: int) -> dict[str, Json]:
    """Returns overrides by which a run takes the steps of one on so many examples."""
    changes: dict[str, Json] = {"steps": experiment.total_steps(examples)}
    per_epoch = max(1, -(-examples // experiment.batch_size))
    for index, hook in enumerate(experiment.hooks):
        named = {field.name for field in dataclasses.fields(hook)}
        if "every" in named and getattr(hook, "every", 0) is None:
            changes[f"hooks.{index}.every"] = per_epoch
    return changes
