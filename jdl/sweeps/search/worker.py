"""One worker of a study: takes points up, trains them, and tells what came of them."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten, override
from jdl.data.splits import Splits
from jdl.errors import UserError, first_line
from jdl.experiment import Experiment
from jdl.sweeps.jobs import Job, Outcome, Vectorize, train_jobs
from jdl.sweeps.search.leases import Claim, Claims
from jdl.sweeps.search.pruning import PRUNED, Report
from jdl.sweeps.search.samplers import quiet
from jdl.sweeps.search.space import Constraint, Space, allowed, suggest
from jdl.sweeps.search.study import ERROR, POINT, SECONDS
from jdl.typing import Json

REJECTIONS = 1000
"""Points in a row that constraints may turn down."""

PAUSE = 0.5
"""Seconds between two looks at a study whose last points others run."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for, and where.

    Attributes:
      experiment: what every trial begins from.
      space: what varies.
      constraints: functions of a point, all of which must be true of it.
      grid: all points, by the names that `suggest` asks for, where they are listed.
      trials: complete and pruned ones that the study is to have.
      metric: SPLIT.NAME that is made large or small.
      workdir: holds `trials`, each the directory of a run.
      file: that the experiment comes from.
      overrides: what was changed in it.
      vectorize: whether points that differ in numbers alone are trained together.
      together: how many points a worker then takes up at once.
    """

    experiment: Experiment
    space: Space
    constraints: tuple[Constraint, ...] = ()
    grid: Sequence[Mapping[str, Any]] | None = None
    trials: int
    metric: str
    workdir: Path
    file: ExperimentFile | None = None
    overrides: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    vectorize: Vectorize = "never"
    together: int = 1

    def directory(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.workdir / "trials" / f"{number:04d}"


@dataclass(frozen=True)
class Task:
    """A trial that this worker has claimed."""

    trial: optuna.Trial
    point: Mapping[str, Any]
    claim: Claim


def work(
    search: Search,
    study: Study,
    claims: Claims,
    data: Splits,
    show: Callable[[], None],
    notify: Callable[[str], None] = print,
) -> None:
    """Runs trials until the study has as many as it is to have, or can get no more.

    Args:
      search: what to run.
      study: that is told of it.
      claims: keep other workers from the same trials.
      data: the experiment's, without its test split.
      show: called after each trial.
      notify: called whether points are trained together.

    Raises:
      UserError: the constraints let hardly any point through.
    """
    size = 1 if search.vectorize == "never" else search.together
    while True:
        with claims.deciding(), quiet():
            tasks = _taken(search, study, claims, size)
        if tasks:
            try:
                together = _run(search, study, tasks, data, show, notify)
            finally:
                for task in tasks:
                    task.claim.release()
            if search.vectorize == "auto" and not together:
                size = 1  # so that each point is chosen in the light of all before
        elif _running(study):
            time.sleep(PAUSE)  # others may yet fail or die
        else:
            return


def _taken(search: Search, study: Study, claims: Claims, size: int) -> list[Task]:
    """Trials to run now, up to so many: first those that somebody began and nobody runs."""
    tasks: list[Task] = []
    while len(tasks) < size:
        task = _abandoned(search, study, claims) or _asked(search, study, claims)
        if task is None:
            break
        tasks.append(task)
    return tasks


def _running(study: Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _abandoned(search: Search, study: Study, claims: Claims) -> Task | None:
    """A trial that somebody began and nobody runs."""
    for found in _running(study):
        claim = claims.claim(found)
        if claim is not None:
            trial = optuna.Trial(study, found._trial_id)
            task = _drawn(search, study, trial, claim)
            if task is not None:
                return task
    return None


def _asked(search: Search, study: Study, claims: Claims) -> Task | None:
    """A new trial, if the study wants one."""
    for _ in range(REJECTIONS):
        if not _wanted(search, study):
            return None
        trial = study.ask()
        claim = claims.hold(trial.number, trial._trial_id)
        if claim is None:
            continue  # who asked held up for so long that another took the trial over
        if not _within(search, study, trial.number):
            claim.release()
            study.tell(trial, state=TrialState.FAIL)
            return None
        task = _drawn(search, study, trial, claim)
        if task is not None:
            return task
    raise UserError(f"the constraints turned {REJECTIONS} points down, one after the other")


def _drawn(search: Search, study: Study, trial: optuna.Trial, claim: Claim) -> Task | None:
    """The trial with its point; None where the constraints turn that down."""
    point = suggest(search.space, trial)
    if not allowed(point, search.constraints):
        claim.release()
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr(POINT, as_json(point))
    return Task(trial, point, claim)


def _wanted(search: Search, study: Study) -> bool:
    """Whether the study is to have more trials than are complete, pruned or running."""
    found = study.get_trials(deepcopy=False)
    if search.grid is not None and len(found) >= len(search.grid):
        return False
    failed = sum(ERROR in each.user_attrs for each in found)
    kept = sum(each.state != TrialState.FAIL for each in found)
    return kept < search.trials and failed < search.trials


def _within(search: Search, study: Study, number: int) -> bool:
    """Whether a trial still belongs to the study, of those that workers may have begun at once."""
    if search.grid is not None and number >= len(search.grid):
        return False
    before = [each for each in study.get_trials(deepcopy=False) if each.number < number]
    return sum(each.state != TrialState.FAIL for each in before) < search.trials


def as_json(point: Mapping[str, Any]) -> dict[str, Json]:
    """A point as `overrides.json` has it."""
    return {path: flatten(value)[""] for path, value in point.items()}


def _run(
    search: Search,
    study: Study,
    tasks: Sequence[Task],
    data: Splits,
    show: Callable[[], None],
    notify: Callable[[str], None],
) -> bool:
    """Trains points in their directories and tells the study; whether any went together."""
    with contextlib.ExitStack() as stack:
        jobs: list[Job] = []
        ready: list[Task] = []
        for task in tasks:
            try:
                jobs.append(_job(search, task, data, stack))
                ready.append(task)
            except Exception as error:
                _tell(search, study, task, error)

        def tell(place: int, outcome: Outcome) -> bool:
            _tell(search, study, ready[place], outcome)
            ready[place].claim.release()
            show()
            return True

        return train_jobs(jobs, search.vectorize, tell, file=search.file, notify=notify)


def _job(search: Search, task: Task, data: Splits, stack: contextlib.ExitStack) -> Job:
    """How a trial's point is trained: the test split is never read."""
    number = task.trial.number
    experiment = override(search.experiment, task.point)
    if experiment.data is not search.experiment.data:
        data = Splits(experiment.data, without=("test",))
    log = search.workdir / "logs" / f"{number:04d}.txt"
    log.parent.mkdir(exist_ok=True)
    return Job(
        experiment=experiment,
        workdir=search.directory(number),
        overrides={**search.overrides, **as_json(task.point)},
        data=data,
        hooks=(Report(metric=search.metric, trial=task.trial),),
        output=stack.enter_context(log.open("a")),
    )


def _tell(search: Search, study: Study, task: Task, outcome: Outcome) -> None:
    """Tells the study what came of a trial."""
    trial = task.trial
    try:
        if isinstance(outcome, Exception):
            raise outcome
        split, _, name = search.metric.partition(".")
        value = outcome.result["metrics"][split][name]
        if value is None or math.isnan(value):
            raise UserError(f"{search.metric} is not a number")
    except Exception as error:
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {first_line(error)}")
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr(SECONDS, outcome.result["seconds"])
    if PRUNED in trial.user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
