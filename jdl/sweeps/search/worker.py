"""The worker of a study: asks for points, trains them and tells Optuna the results."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten, override
from jdl.data.splits import Splits
from jdl.errors import UserError, first_line
from jdl.experiment import Experiment
from jdl.sweeps.jobs import Job, Outcome, Vectorize, train_jobs
from jdl.sweeps.search.dimensions import Space
from jdl.sweeps.search.leases import Lease, TrialLeases
from jdl.sweeps.search.pruning import PRUNED, Pruning
from jdl.sweeps.search.samplers import PrunerName, SamplerName, quiet_optuna
from jdl.sweeps.search.space import Constraint, grid_points, is_allowed, suggest, validate
from jdl.sweeps.search.study import ERROR, POINT, SECONDS
from jdl.typing import Json

MAX_REJECTIONS = 1000
"""Consecutive points that may violate a constraint."""

POLL_INTERVAL = 0.5
"""Seconds between two polls of a study whose last trials other workers run."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study searches, and how."""

    experiment: Experiment  # that the points override
    space: Space  # the dimensions
    workdir: Path  # its folder `trials` holds a run directory per trial
    constraints: tuple[Constraint, ...] = ()  # predicates that every point must satisfy
    file: ExperimentFile | None = None  # the experiment's file
    overrides: Mapping[str, Json] = dataclasses.field(default_factory=dict)  # by path
    sampler: SamplerName = "tpe"
    trials: int | None = None  # complete and pruned trials to reach; None: 20, or the whole grid
    pruner: PrunerName = "none"  # stops unpromising trials
    metric: str = "validation.accuracy"  # SPLIT.NAME to optimize
    mode: Literal["min", "max"] | None = None  # None: the metric's own direction
    storage: str | None = None  # URL of a database; None: a journal file in the directory
    study: str | None = None  # name in the storage; None: the experiment's
    vectorize: Vectorize = "never"  # train points of equal shapes in one vmapped step
    vectorized_trials: int = 8  # how many of them a worker takes at once

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials must be at least 1, not {self.trials}")
        if self.vectorized_trials < 1:
            raise UserError(f"vectorized_trials must be at least 1, not {self.vectorized_trials}")
        split, _, name = self.metric.partition(".")
        if not (split and name):
            raise UserError(f"a metric is SPLIT.NAME, as validation.accuracy, not {self.metric!r}")
        if split == "test":
            raise UserError("a search never reads the test split: choose a validation metric")
        validate(self.space, self.experiment)

    @functools.cached_property
    def grid(self) -> list[dict[str, Any]] | None:
        """All points, as `grid_points` lists them; None for other samplers."""
        return grid_points(self.space, self.constraints) if self.sampler == "grid" else None

    @property
    def num_trials(self) -> int:
        """Complete and pruned trials to reach."""
        return self.trials or (20 if self.grid is None else len(self.grid))

    def directory(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.workdir / "trials" / f"{number:04d}"


@dataclass(frozen=True)
class LeasedTrial:
    """A trial that this worker runs."""

    trial: optuna.Trial
    point: Mapping[str, Any]
    lease: Lease


def work(
    config: StudyConfig,
    study: Study,
    leases: TrialLeases,
    data: Splits,
    show: Callable[[], None],
    notify: Callable[[str], None] = print,
) -> None:
    """Runs trials until the study has enough, or the grid or the failures are exhausted.

    Args:
      config: of the study.
      study: to ask and to tell.
      leases: keep other workers from the same trials.
      data: the experiment's, without its test split.
      show: called after each trial.
      notify: prints whether points are vectorized.

    Raises:
      UserError: nearly every point violates a constraint.
    """
    size = 1 if config.vectorize == "never" else config.vectorized_trials
    while True:
        with leases.exclusive(), quiet_optuna():
            batch = _next_trials(config, study, leases, size)
        if batch:
            try:
                vectorized = _run(config, study, batch, data, show, notify)
            finally:
                for leased in batch:
                    leased.lease.release()
            if config.vectorize == "auto" and not vectorized:
                size = 1  # each point is then sampled with all earlier results known
        elif _running(study):
            time.sleep(POLL_INTERVAL)  # their workers may still fail or die
        else:
            return


def _next_trials(
    config: StudyConfig, study: Study, leases: TrialLeases, size: int
) -> list[LeasedTrial]:
    """At most `size` trials to run now: those of dead workers first, then new ones."""
    batch: list[LeasedTrial] = []
    while len(batch) < size:
        leased = _take_over(config, study, leases) or _ask(config, study, leases)
        if leased is None:
            break
        batch.append(leased)
    return batch


def _running(study: Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _take_over(config: StudyConfig, study: Study, leases: TrialLeases) -> LeasedTrial | None:
    """A trial whose worker died."""
    for found in _running(study):
        lease = leases.take_over(found)
        if lease is not None:
            leased = _suggest(config, study, optuna.Trial(study, found._trial_id), lease)
            if leased is not None:
                return leased
    return None


def _ask(config: StudyConfig, study: Study, leases: TrialLeases) -> LeasedTrial | None:
    """A new trial, if the study needs one."""
    for _ in range(MAX_REJECTIONS):
        if not _needs_more(config, study):
            return None
        trial = study.ask()
        lease = leases.acquire(trial.number, trial._trial_id)
        if lease is None:
            continue  # this process was suspended for so long that another worker took it over
        if not _is_within(config, study, trial.number):
            lease.release()
            study.tell(trial, state=TrialState.FAIL)
            return None
        leased = _suggest(config, study, trial, lease)
        if leased is not None:
            return leased
    raise UserError(
        f"{MAX_REJECTIONS} consecutive points violated a constraint: relax the constraints or "
        f"narrow the space"
    )


def _suggest(
    config: StudyConfig, study: Study, trial: optuna.Trial, lease: Lease
) -> LeasedTrial | None:
    """The trial with its point; None, and failed, if that violates a constraint."""
    point = suggest(config.space, trial)
    if not is_allowed(point, config.constraints):
        lease.release()
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr(POINT, as_json(point))
    return LeasedTrial(trial, point, lease)


def _needs_more(config: StudyConfig, study: Study) -> bool:
    """Whether fewer trials are complete, pruned or running than the study is to reach."""
    found = study.get_trials(deepcopy=False)
    if config.grid is not None and len(found) >= len(config.grid):
        return False
    failed = sum(ERROR in each.user_attrs for each in found)
    kept = sum(each.state != TrialState.FAIL for each in found)
    return kept < config.num_trials and failed < config.num_trials


def _is_within(config: StudyConfig, study: Study, number: int) -> bool:
    """Whether a new trial is within the study's limit; several workers may have asked at once."""
    if config.grid is not None and number >= len(config.grid):
        return False
    earlier = [each for each in study.get_trials(deepcopy=False) if each.number < number]
    return sum(each.state != TrialState.FAIL for each in earlier) < config.num_trials


def as_json(point: Mapping[str, Any]) -> dict[str, Json]:
    """A point as overrides in JSON."""
    return {path: flatten(value)[""] for path, value in point.items()}


def _run(
    config: StudyConfig,
    study: Study,
    batch: Sequence[LeasedTrial],
    data: Splits,
    show: Callable[[], None],
    notify: Callable[[str], None],
) -> bool:
    """Trains points in their run directories and tells the study; whether any were vectorized."""
    with contextlib.ExitStack() as stack:
        jobs: list[Job] = []
        ready: list[LeasedTrial] = []
        for leased in batch:
            try:
                jobs.append(_job(config, leased, data, stack))
                ready.append(leased)
            except Exception as error:
                _tell(config, study, leased.trial, error)

        def tell(index: int, outcome: Outcome) -> bool:
            _tell(config, study, ready[index].trial, outcome)
            ready[index].lease.release()
            show()
            return True

        return train_jobs(jobs, config.vectorize, tell, file=config.file, notify=notify)


def _job(
    config: StudyConfig, leased: LeasedTrial, data: Splits, stack: contextlib.ExitStack
) -> Job:
    number = leased.trial.number
    experiment = override(config.experiment, leased.point)
    if experiment.data is not config.experiment.data:
        data = Splits(experiment.data, exclude=("test",))
    log = config.workdir / "logs" / f"{number:04d}.txt"
    log.parent.mkdir(exist_ok=True)
    return Job(
        experiment=experiment,
        workdir=config.directory(number),
        overrides={**config.overrides, **as_json(leased.point)},
        data=data,
        hooks=(Pruning(metric=config.metric, trial=leased.trial),),
        output=stack.enter_context(log.open("a")),
    )


def _tell(config: StudyConfig, study: Study, trial: optuna.Trial, outcome: Outcome) -> None:
    """Tells the study the value of a trial, or that it was pruned or failed."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        split, _, name = config.metric.partition(".")
        value = outcome.result["metrics"][split][name]
        if math.isnan(value):
            raise UserError(f"{config.metric} is not a number")
    except Exception as error:
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {first_line(error)}")
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr(SECONDS, outcome.result["seconds"])
    if PRUNED in trial.user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
