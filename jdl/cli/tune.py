"""The command that searches: `jdl tune`."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from jdl.cli.train import score_line
from jdl.errors import UserError
from jdl.trainer.interrupt import Interrupted, Interruption


def tune(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
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
    together: int = 8,
    final: bool = False,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Search for the best variant of an experiment. Killed at any moment, it goes on where it was.

    What may vary stands beside the experiment in its file, as `space`, or is told here:
    --space optimizer.learning-rate=log:1e-4:1e-1 model.widths.0=int:32:512:32
    task.label-smoothing=uniform:0:0.2 optimizer=choice:adam,sgd. Fields are set by their path as
    for `train`. The same command on another machine, with the same --storage, takes part in it.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        workdir: of the study (default: runs/NAME-tune); trials/NNNN in it are the runs, best the
            best of them.
        space: dimensions beside those of the file, or in their place.
        sampler: what proposes points; gp and cmaes need packages of their own.
        trials: complete and pruned ones to have, whoever ran them (default: 20, of a grid all).
        pruner: what stops hopeless trials.
        metric: SPLIT.NAME of the score.
        mode: whether less or more is better (default: as the metric's name tells).
        workers: processes, among which CPU cores and GPUs are shared out.
        storage: URL of a database (default: a journal file in the directory).
        study: name in the storage (default: the experiment's).
        vectorize: train points that differ in numbers alone together, in one compiled step.
        together: points that a worker then takes up at once.
        final: in the end train the best point on training and validation data together, in
            DIR/final, and read the test split once.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("jdl tune needs the package optuna: pip install 'jdl-research[search]'")
    import optuna

    from jdl.config.experiment_file import load
    from jdl.config.overrides import override
    from jdl.sweeps.search import tuning
    from jdl.sweeps.search.local_workers import spawn
    from jdl.sweeps.search.parsing import parse
    from jdl.sweeps.search.refit import joined, train_final

    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = load(experiment)
    workdir = workdir or Path("runs") / f"{file.name}-tune"
    options = {
        "sampler": sampler, "trials": trials, "pruner": pruner, "metric": metric, "mode": mode,
        "storage": storage, "study": study, "vectorize": vectorize, "together": together,
    }  # fmt: skip
    words = _words(experiment, workdir, space, options, changes or {})
    changed = override(file.experiment, changes or {})
    if final:
        joined(changed)  # what keeps it from that is said now
    with _interruptible():
        found = tuning.tune(
            changed,
            {**file.space, **parse(space)},
            constraints=file.constraints,
            workdir=workdir,
            file=file,
            overrides=changes,
            run=None if workers == 1 else lambda show: spawn(words, workers, show),
            notify=lambda line: print(line, flush=True),
            **options,
        )
        _say_best(found)
    if final:
        run = train_final(found, changed, file=file, overrides=changes)
        for split, scores in run.result["metrics"].items():
            run.print(score_line(split, scores))
        run.print(f"{run.result['seconds']:.1f} s; {run.workdir} holds the run")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Says that a search that is asked to end can go on."""
    try:
        with Interruption():
            yield
    except Interrupted:
        print("interrupted; saved: the same command goes on from there", flush=True)
        raise


def _say_best(study: Any) -> None:
    """Prints the best of a `jdl.sweeps.search.tuning.Study`, whose imports are slow."""
    assert study.best is not None
    name = f"trials/{study.best.number:04d}"
    here = (study.workdir / name).exists()
    where = f"{study.workdir}/best, which is {name}" if here else f"{name} where it was run"
    print(f"{study.metric} {study.best.value:.4f} in {where}, with")
    for path, value in study.best.point.items():
        print(f"  --{path.replace('_', '-')} {_text(value)}")


def _words(
    experiment: str,
    workdir: Path,
    space: Sequence[str],
    options: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> list[str]:
    """The command line of one worker."""
    words = ["tune", experiment, "--workdir", str(workdir)]
    if space:
        words += ["--space", *space]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    for path, value in changes.items():
        words += [f"--{path}", *([value] if isinstance(value, str) else map(str, value))]
    return words


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
