"""Trains an experiment."""

import contextlib
import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from jdl.config.experiment_file import ExperimentFile
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory
from jdl.hooks import Hook
from jdl.parallel import Steps
from jdl.pretrained import initial_arrays
from jdl.trainer import record
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.compilation_cache import enable_compilation_cache
from jdl.trainer.interrupt import Interruption
from jdl.trainer.loop import TrainingLoop
from jdl.trainer.opening import restore_finished
from jdl.trainer.run import Run
from jdl.trainer.training_run import TrainingRun
from jdl.typing import Json


def train(
    experiment: Experiment,
    workdir: str | Path | None = None,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    data: Splits | None = None,
    hooks: Sequence[Hook] = (),
) -> Run:
    """Trains an experiment, or resumes it if the directory holds a run of it.

    Args:
      experiment: what to train, overrides included.
      workdir: the run directory; None for a temporary one, deleted with the returned run.
      file: the experiment's file, copied to the directory with `overrides`.
      overrides: what was changed in the experiment of that file, by path.
      data: the splits of `experiment.data`, if the caller has opened them.
      hooks: the caller's own, after those of the experiment and not part of its record.

    Returns:
      The finished run. If it was finished before, it is loaded and returned.

    Raises:
      UserError: the parts do not fit together, found before compiling wherever possible; saved
        checkpoints stay intact.
      Interrupted: on SIGTERM or Ctrl-C, after saving if there is a `workdir`.
    """
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"jdl.train takes an Experiment, not {type(experiment).__name__}: to train a module on "
            f"arrays, call jdl.fit(model, x, y)"
        )
    configure_allocator(experiment.runtime.malloc_arenas)
    enable_compilation_cache()
    temporary = None if workdir else tempfile.mkdtemp(prefix="jdl-")
    workdir = Path(workdir or temporary or ".")
    found = record.find_run(workdir, experiment, file.name if file else "experiment")
    if found.is_finished:
        return restore_finished(found)
    interruption = Interruption(shared=jax.process_count() > 1)
    with (
        interruption,
        open_loop(
            found, interruption, file=file, overrides=overrides, data=data, hooks=hooks
        ) as loop,
    ):
        if temporary:
            loop.run.is_temporary = True
            weakref.finalize(loop.run, shutil.rmtree, temporary, ignore_errors=True)
        loop.train()
    return loop.run


@contextlib.contextmanager
def open_loop(
    found: record.FoundRun,
    interruption: Interruption,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    data: Splits | None = None,
    hooks: Sequence[Hook] = (),
    compile: Callable[..., Steps] | None = None,
    vectorized: int = 1,
) -> Iterator[TrainingLoop]:
    """Opens a run to train: locks its directory, prepares its steps, and writes its metadata.

    Args:
      found: the experiment, compared with its directory.
      interruption: handles signals to the run.
      file, overrides, data, hooks: as for `train`.
      compile: prepares the compiled steps; None for the strategy's.
      vectorized: number of runs that are stepped together.
    """
    experiment, workdir = found.experiment, found.workdir
    with _directory(workdir):
        watched = dataclasses.replace(experiment, hooks=(*experiment.hooks, *hooks))
        run = TrainingRun(watched, found.name, workdir, data, compile)
        run.interruption = interruption
        for split in run.splits:
            run.pipeline(split)  # errors in the data are raised before compiling
        if found.recorded is None:
            # Raises errors in them before compiling.
            initial_arrays(
                experiment.init_from, experiment.task, experiment.model, run.compiled.abstract_state
            )
        loop = TrainingLoop(run)
        record.write(run, found, file, overrides or {}, vectorized)
        yield loop


@contextlib.contextmanager
def _directory(workdir: Path) -> Iterator[None]:
    """Creates and locks a run directory; removes it if no run was started in it.

    Raises:
      UserError: it cannot be written, is locked, or holds files but no run.
    """
    if jax.process_index() != 0:
        yield
        return
    ours = (".lock", ".experiment.json.tmp")  # left by a process that ended early
    found = list(workdir.glob("*")) if workdir.is_dir() else []
    others = [path.name for path in found if path.name not in ours]
    if others and not RunDirectory(workdir).experiment.exists():
        raise UserError(f"{workdir} is not empty and holds no run (it holds {others[0]})")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        lock.enter_context(record.locked(workdir))
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            yield
        finally:
            if not RunDirectory(workdir).experiment.exists():
                (workdir / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    workdir.rmdir()
