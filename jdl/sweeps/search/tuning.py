"""Hyperparameter search: `tune`."""

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
from jdl.sweeps.search.leases import TrialLeases
from jdl.sweeps.search.progress import SearchProgress
from jdl.sweeps.search.samplers import make_pruner, make_sampler
from jdl.sweeps.search.space import Constraint, describe, space_as_json
from jdl.sweeps.search.study import (
    TrialRecord,
    best_record,
    open_storage,
    open_study,
    trial_records,
    write_trials,
)
from jdl.sweeps.search.worker import StudyConfig, work
from jdl.trainer.training_run import TrainingRun
from jdl.typing import Json


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of `tune`."""

    workdir: Path  # `trials/NNNN` in it are the run directories, `best` links to the best one
    metric: str  # SPLIT.NAME that was optimized
    trials: tuple[TrialRecord, ...]  # of all workers, in the order in which they started
    best: TrialRecord | None  # the complete trial with the best value; None if there is none


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
    **options: Any,
) -> SearchResult:
    """Searches for the hyperparameters with the best metric, or resumes such a search.

    Each trial is a run in `workdir/trials/NNNN` that never reads the test split. A study that the
    directory or the storage already holds is resumed; a trial whose worker died continues from its
    last checkpoint.

    Args:
      experiment: that the points override; its seed is also the sampler's.
      space: dimensions by path.
      workdir: of the study.
      constraints: predicates that every point must satisfy.
      file: the experiment's file.
      overrides: of the experiment, by path.
      notify: prints a line of progress.
      run: runs the workers elsewhere and calls its argument now and then; None to run one here.
      **options: other fields of `StudyConfig`.

    Returns:
      The trials, and the best one.

    Raises:
      UserError: an argument is invalid, or no trial completed.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    config = StudyConfig(
        experiment=experiment,
        space=space,
        workdir=Path(workdir),
        constraints=tuple(constraints),
        file=file,
        overrides=overrides or {},
        **options,
    )
    if RunDirectory(config.workdir).experiment.exists():
        raise UserError(f"{workdir} holds a run, not a search: choose another --workdir")
    return _search(config, notify, run)


def _search(
    config: StudyConfig,
    notify: Callable[[str], None],
    run: Callable[[Callable[[], None]], None] | None,
) -> SearchResult:
    """Opens the study, runs its trials and keeps `study.jsonl` current."""
    sampler = make_sampler(config.sampler, config.experiment.seed, config.grid or ())
    data = Splits(config.experiment.data, exclude=("test",))
    direction = _direction(config, data)
    storage = open_storage(config.storage, config.workdir)
    study = open_study(
        storage,
        config.study or (config.file.name if config.file else "study"),
        _identity(config),
        direction,
        sampler,
        make_pruner(config.pruner),
    )
    leases = TrialLeases(study, storage, config.workdir)
    progress = SearchProgress(study, config, notify)
    with leases.exclusive():
        write_json(RunDirectory(config.workdir).study, _described(study, config))
        write_trials(study, config.workdir)

    def show() -> None:
        if progress.show():
            with leases.exclusive():
                write_trials(study, config.workdir)

    if run is None:
        work(config, study, leases, data, show, notify)
    else:
        run(show)
    show()
    with leases.exclusive():
        return _finish(study, config)


def _described(study: optuna.Study, config: StudyConfig) -> dict[str, Json]:
    """The content of `study.json`, which `jdl report` reads."""
    return {
        "study": study.study_name,
        "experiment": config.file.name if config.file else None,
        "overrides": dict(config.overrides),
        "space": space_as_json(config.space),
        "constraints": [getattr(each, "__name__", str(each)) for each in config.constraints],
        "metric": config.metric,
        "direction": study.direction.name.lower(),
        "sampler": config.sampler,
        "pruner": config.pruner,
        "trials": config.num_trials,
    }


def _identity(config: StudyConfig) -> dict[str, Json]:
    """What must be equal for a study to be resumed."""
    free = ("hooks", "strategy", "runtime")
    fields = {k: v for k, v in flatten(config.experiment).items() if k.split(".")[0] not in free}
    return {
        "fields": fields,
        "space": describe(config.space),
        "constraints": [getattr(each, "__name__", "") for each in config.constraints],
        "metric": config.metric,
        "sampler": config.sampler,
    }


def _direction(config: StudyConfig, data: Splits) -> Literal["minimize", "maximize"]:
    """Whether the metric is minimized or maximized.

    Raises:
      UserError: no run would report the metric, or its direction is unknown.
    """
    split, _, name = config.metric.partition(".")
    if split not in data.names:
        known = ", ".join(data.names)
        raise UserError(
            f"{config.metric} is never computed: the data has no split {split!r} (it has {known}); "
            f"data.validation_fraction makes one"
        )
    run = TrainingRun(config.experiment, "", config.workdir, data)
    task = config.experiment.task
    probes = [probe.name for probe in task.probes if split in probe.splits]
    scores = [*run.abstract_metrics(), *probes]
    on_host = task.has_host_metrics(split, config.experiment.data)
    if name not in scores and not on_host:
        raise UserError(
            f"there is no metric {name!r} of {split} (there are {', '.join(scores)})"
            f"{nearest(name, scores)}"
        )
    higher = run.higher_is_better(name) if config.mode is None else config.mode == "max"
    if higher is None:
        raise UserError(
            f"whether a higher {config.metric} is better is unknown: set mode to min or max"
        )
    return "maximize" if higher else "minimize"


def _finish(study: optuna.Study, config: StudyConfig) -> SearchResult:
    """Writes the trials and links `best` to the best run.

    Raises:
      UserError: no trial completed.
    """
    found, leader = trial_records(study), best_record(study)
    write_trials(study, config.workdir)
    if leader is None:
        failed = [each for each in found if each.state == "failed"]
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        reason = f"; the first failure: {failed[0].error}{more}" if failed else ""
        raise UserError(f"no trial of {config.workdir} completed{reason}")
    directory, link = config.directory(leader.number), config.workdir / "best"
    if directory.exists():
        draft = config.workdir / ".best.tmp"
        draft.unlink(missing_ok=True)
        draft.symlink_to(directory.relative_to(config.workdir))
        draft.replace(link)
    else:
        link.unlink(missing_ok=True)  # another machine has it
    return SearchResult(
        workdir=config.workdir, metric=config.metric, trials=tuple(found), best=leader
    )
