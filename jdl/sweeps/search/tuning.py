"""Searching for the best of an experiment's variants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten
from jdl.data.splits import Splits
from jdl.errors import UserError, nearest
from jdl.experiment import Experiment
from jdl.files import RunDirectory, write_json
from jdl.sweeps.jobs import Vectorize
from jdl.sweeps.search.leases import Claims
from jdl.sweeps.search.progress import Progress
from jdl.sweeps.search.samplers import PrunerName, SamplerName, make_pruner, make_sampler
from jdl.sweeps.search.space import Constraint, check, describe, grid, listed
from jdl.sweeps.search.study import (
    Trial,
    best,
    open_storage,
    open_study,
    trials,
    write_trials,
)
from jdl.sweeps.search.worker import Search, work
from jdl.trainer.run import Run
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a search found.

    Attributes:
      workdir: its directory; `trials/NNNN` in it holds each trial's run, `best` the best one's.
      metric: SPLIT.NAME of the score that trials were judged by.
      trials: all of them, whoever ran them, in the order in which they began.
      best: the one with the best score; None where none came to its end.
    """

    workdir: Path
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search goes about it."""

    sampler: SamplerName = "tpe"  # what proposes points
    trials: int | None = None  # complete and pruned ones to have; None: 20, of a grid all
    pruner: PrunerName = "none"  # what stops hopeless trials
    metric: str = "validation.accuracy"  # SPLIT.NAME of the score
    mode: Literal["min", "max"] | None = None  # what is better; None: as the metric defines it
    storage: str | None = None  # URL of a database; None: a journal file in the directory
    study: str | None = None  # name in the storage; None: the experiment's
    vectorize: Vectorize = "never"  # train points together that differ in numbers alone
    together: int = 8  # points that a worker then takes up at once

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials must be at least 1, not {self.trials}")
        if self.together < 1:
            raise UserError(f"together must be at least 1, not {self.together}")
        split, _, name = self.metric.partition(".")
        if not (split and name):
            raise UserError(f"a metric is SPLIT.NAME, as validation.accuracy, not {self.metric!r}")
        if split == "test":
            raise UserError("a search never reads the test split: choose a score of validation")


def tune(
    experiment: Experiment,
    space: Mapping[str, Any],
    *,
    workdir: str | Path,
    constraints: Sequence[Constraint] = (),
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    notify: Callable[[str], None] = print,
    run: Callable[[Callable[[], None]], None] | None = None,
    **settings: Any,
) -> Study:
    """Searches a space for the variant with the best score, or goes on with such a search.

    Each trial is an ordinary run in `workdir/trials/NNNN` that never reads the test split. Where
    the directory, or the storage, holds the study already, the search goes on with it: a trial
    whose worker died is taken up again from its last checkpoint.

    Args:
      experiment: what every trial begins from; its seed is also the sampler's.
      space: what varies, by path.
      workdir: of the study.
      constraints: functions of a point, all of which must be true of it.
      file: where the experiment comes from.
      overrides: what was changed in the experiment of that file, by path.
      notify: called how it goes.
      run: has others do the work, and calls what it is given now and then; None: it is done here.
      **settings: fields of `Settings`.

    Returns:
      The study.

    Raises:
      UserError: something does not fit, before anything is trained wherever that can be known; or
        no trial came to its end.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    config = Settings(**settings)
    check(space, experiment)
    points = grid(space, constraints) if config.sampler == "grid" else None
    search = Search(
        experiment=experiment,
        space=space,
        constraints=tuple(constraints),
        grid=points,
        trials=config.trials or (20 if points is None else len(points)),
        metric=config.metric,
        workdir=Path(workdir),
        file=file,
        overrides=overrides or {},
        vectorize=config.vectorize,
        together=config.together,
    )
    if RunDirectory(search.workdir).experiment.exists():
        raise UserError(f"{workdir} holds a run, not a search: choose another --workdir")
    sampler = make_sampler(config.sampler, experiment.seed, points or ())
    data = Splits(experiment.data, without=("test",))
    direction = _direction(search, data, config.mode)
    storage = open_storage(config.storage, search.workdir)
    study = open_study(
        storage,
        config.study or (file.name if file else "study"),
        _identity(search, config),
        direction,
        sampler,
        make_pruner(config.pruner),
    )
    claims, progress = Claims(study, storage, search.workdir), Progress(study, search, notify)
    with claims.deciding():
        write_json(RunDirectory(search.workdir).study, _described(study, search, config))
        write_trials(study, search.workdir)

    def show() -> None:
        if progress.show():
            with claims.deciding():
                write_trials(study, search.workdir)

    if run is None:
        work(search, study, claims, data, show, notify)
    else:
        run(show)
    show()
    with claims.deciding():
        return _finish(study, search)


def _described(study: optuna.Study, search: Search, config: Settings) -> dict[str, Json]:
    """What a search is for and how it goes about it, for people and for `jdl report`."""
    return {
        "study": study.study_name,
        "experiment": search.file.name if search.file else None,
        "overrides": dict(search.overrides),
        "space": listed(search.space),
        "constraints": [getattr(each, "__name__", str(each)) for each in search.constraints],
        "metric": config.metric,
        "direction": study.direction.name.lower(),
        "sampler": config.sampler,
        "pruner": config.pruner,
        "trials": search.trials,
    }


def _identity(search: Search, config: Settings) -> dict[str, Json]:
    """What a study is of: it may go on only with the same."""
    free = ("hooks", "strategy")
    fields = {k: v for k, v in flatten(search.experiment).items() if k.split(".")[0] not in free}
    return {
        "fields": fields,
        "space": describe(search.space),
        "constraints": [getattr(each, "__name__", "") for each in search.constraints],
        "metric": config.metric,
        "sampler": config.sampler,
    }


def _direction(
    search: Search, data: Splits, mode: Literal["min", "max"] | None
) -> Literal["minimize", "maximize"]:
    """Whether the metric is minimized or maximized.

    Raises:
      UserError: no run would report the metric, or its direction is unknown.
    """
    split, _, name = search.metric.partition(".")
    if split not in data.names:
        known = ", ".join(data.names)
        raise UserError(
            f"{search.metric} is never scored: the data has no split {split!r} (it has {known}); "
            f"data.validation_fraction makes one"
        )
    run = Run(search.experiment, "", search.workdir, data)
    scores = run.abstract_metrics()
    judged = search.experiment.task.has_host_metrics(split, search.experiment.data)
    if name not in scores and not judged:
        raise UserError(
            f"there is no metric {name!r} of {split} (there are {', '.join(scores)})"
            f"{nearest(name, scores)}"
        )
    higher = run.higher_is_better(name) if mode is None else mode == "max"
    if higher is None:
        raise UserError(
            f"whether a higher {search.metric} is better is unknown: set mode to min or max"
        )
    return "maximize" if higher else "minimize"


def _finish(study: optuna.Study, search: Search) -> Study:
    """Writes what was found, and has `best` lead to the best run.

    Raises:
      UserError: no trial came to its end.
    """
    found, leader = trials(study), best(study)
    write_trials(study, search.workdir)
    if leader is None:
        failed = [each for each in found if each.state == "failed"]
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        reason = f"; the first failure: {failed[0].error}{more}" if failed else ""
        raise UserError(f"no trial of {search.workdir} came to its end{reason}")
    directory, link = search.directory(leader.number), search.workdir / "best"
    if directory.exists():
        draft = search.workdir / ".best.tmp"
        draft.unlink(missing_ok=True)
        draft.symlink_to(directory.relative_to(search.workdir))
        draft.replace(link)
    else:
        link.unlink(missing_ok=True)  # it lies where it was run
    return Study(workdir=search.workdir, metric=search.metric, trials=tuple(found), best=leader)
