"""`jdl tune`."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jdl.cli.arguments import ExperimentName, Overrides
from jdl.cli.train import print_result
from jdl.config.overrides import as_flags
from jdl.errors import UserError, install_command
from jdl.trainer.interrupt import Interrupted, Interruption


def tune(
    experiment: ExperimentName,
    /,
    workdir: Path | None = None,
    space: tuple[str, ...] = (),
    sampler: Literal["grid", "random", "tpe", "gp", "cmaes"] = "tpe",
    trials: int | None = None,
    pruner: Literal["none", "median", "hyperband"] = "none",
    metric: str = "validation.accuracy",
    mode: Literal["min", "max"] | None = None,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    vectorize: Literal["auto", "always", "never"] = "never",
    vectorized_trials: int = 8,
    refit: bool = False,
    *,
    overrides: Overrides = None,
) -> None:
    """Search hyperparameters, or resume the search in --workdir.

    The search space is `space` in the experiment's file, or given here:
    --space optimizer.learning-rate=log:1e-4:1e-1 model.widths.0=int:32:512:32
    task.label-smoothing=uniform:0:0.2 optimizer=choice:adam,sgd. Fields are set by their path as
    for `train`. The same command on another machine with the same --storage adds workers.

    Args:
        workdir: of the study (default: runs/NAME-tune); the runs are in trials/NNNN, best is a link
            to the best of them.
        space: dimensions, added to those of the file or replacing them.
        sampler: proposes points; gp and cmaes need packages of their own.
        trials: number of complete and pruned trials, of all workers (default: 20, of a grid all).
        pruner: stops unpromising trials early.
        metric: SPLIT.NAME of the score.
        mode: whether to minimize or maximize (default: as the metric defines it).
        workers: number of processes, which share the CPU cores and GPUs.
        storage: URL of a database (default: a journal file in the directory).
        study: name in the storage (default: the experiment's).
        vectorize: train points that differ only in numbers together in one vmapped step.
        vectorized_trials: number of points that a worker then trains at once.
        refit: at the end train the best point on training and validation data, in DIR/refit, and
            evaluate it on the test split once.
    """
    options = {
        "sampler": sampler, "trials": trials, "pruner": pruner, "metric": metric, "mode": mode,
        "storage": storage, "study": study, "vectorize": vectorize,
        "vectorized_trials": vectorized_trials,
    }  # fmt: skip
    _search(experiment, workdir, space, workers, options, overrides or {}, refit)


def _search(
    experiment: str,
    workdir: Path | None,
    space: Sequence[str],
    workers: int,
    options: dict[str, Any],
    overrides: Mapping[str, Any],
    refit: bool,
) -> None:
    """Runs the search, prints its best trial and, if `refit`, trains that point again."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"jdl tune needs the package optuna: {install_command('search')}")
    import optuna

    from jdl.config.experiment_file import load
    from jdl.config.overrides import override
    from jdl.sweeps.search import tuning
    from jdl.sweeps.search.local_workers import run_workers
    from jdl.sweeps.search.parsing import parse_space
    from jdl.sweeps.search.refit import merge_validation
    from jdl.sweeps.search.refit import refit as refit_best

    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = load(experiment)
    workdir = workdir or Path("runs") / f"{file.name}-tune"
    command = _worker_command(experiment, workdir, space, options, overrides)
    changed = override(file.experiment, overrides)
    if refit:
        merge_validation(changed)  # reports now what would prevent it after the search
    with _interruptible():
        found = tuning.tune(
            changed,
            {**file.space, **parse_space(space)},
            constraints=file.constraints,
            workdir=workdir,
            file=file,
            overrides=overrides,
            run=None if workers == 1 else lambda show: run_workers(command, workers, show),
            notify=lambda line: print(line, flush=True),
            **options,
        )
        _print_best(found)
    if refit:
        run = refit_best(found, changed, file=file, overrides=overrides)
        print_result(run, run.workdir)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Tells the user that an interrupted search can be resumed."""
    try:
        with Interruption():
            yield
    except Interrupted:
        print("interrupted; saved: the same command resumes it", flush=True)
        raise


def _print_best(study: Any) -> None:
    """Prints the best trial of a `jdl.sweeps.search.tuning.SearchResult`."""
    assert study.best is not None
    name = f"trials/{study.best.number:04d}"
    where = f"{name} on the machine that ran it"
    if (study.workdir / name).exists():
        where = f"{study.workdir}/best, a link to {name}"
    print(f"{study.metric} {study.best.value:.4f} in {where}, with")
    for path, value in study.best.point.items():
        print(" ", *as_flags({path: value}))


def _worker_command(
    experiment: str,
    workdir: Path,
    space: Sequence[str],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> list[str]:
    """The command line of a worker."""
    command = ["tune", experiment, "--workdir", str(workdir)]
    if space:
        command += ["--space", *space]
    given = {name: value for name, value in options.items() if value is not None}
    return [*command, *as_flags(given), *as_flags(overrides)]
