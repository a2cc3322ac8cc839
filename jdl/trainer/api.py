"""Trains from Python: an experiment, or a Flax module and two arrays."""

import contextlib
import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jdl.checkpoint import CheckpointStore
from jdl.config.experiment_file import ExperimentFile
from jdl.data.arrays import Arrays
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, read_json
from jdl.hooks import Hook
from jdl.parallel import Single, Steps
from jdl.tasks import Classification, Regression, Task
from jdl.trainer import record
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.compilation_cache import enable_compilation_cache
from jdl.trainer.loop import TrainingLoop
from jdl.trainer.run import Run
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
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    configure_allocator(experiment.runtime.malloc_arenas)
    enable_compilation_cache()
    temporary = None if workdir else tempfile.mkdtemp(prefix="jdl-")
    workdir = Path(workdir or temporary or ".")
    if run := load_finished(experiment, workdir, file):
        return run
    with open_for_training(experiment, workdir, file=file, data=data, hooks=hooks) as run:
        if temporary:
            weakref.finalize(run, shutil.rmtree, temporary, ignore_errors=True)
        with run.interruption:
            prepare(run, experiment, file=file, overrides=overrides).train()
    return run


def load_finished(experiment: Experiment, workdir: Path, file: ExperimentFile | None) -> Run | None:
    """Returns the run in a directory if it is finished, else None.

    Raises:
      UserError: the directory holds a run of another experiment.
    """
    if not RunDirectory(workdir).experiment.exists():
        return None
    record.check_name(workdir, _name(file))
    record.check_settings(workdir, experiment)
    return open_run(workdir, experiment) if record.is_finished(workdir, experiment) else None


@contextlib.contextmanager
def open_for_training(
    experiment: Experiment,
    workdir: Path,
    *,
    file: ExperimentFile | None = None,
    data: Splits | None = None,
    hooks: Sequence[Hook] = (),
    compile: Callable[..., Steps] | None = None,
) -> Iterator[Run]:
    """Opens a run to train, with its directory locked.

    Args:
      experiment, workdir, file, data, hooks: as for `train`.
      compile: prepares the compiled steps; None for the strategy's.
    """
    known = record.with_tokenizer(workdir, experiment)
    with _directory(workdir):
        watched = dataclasses.replace(known, hooks=(*known.hooks, *hooks))
        if data is not None and known is not experiment:
            data = data.with_data(known.data)
        yield Run(watched, _name(file), workdir, data, compile)


def prepare(
    run: Run,
    experiment: Experiment,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    vectorized: int = 1,
) -> TrainingLoop:
    """Writes the run's metadata and returns its training loop.

    Args:
      run: the run.
      experiment: as for `train`, without additions by the directory or the caller.
      file: the experiment's file.
      overrides: what was changed in it, by path.
      vectorized: number of runs that are stepped together.
    """
    workdir = run.workdir
    for split in run.splits:
        run.pipeline(split)  # errors in the data are raised before compiling
    loop = TrainingLoop(run)
    surroundings = record.environment(run.data.fingerprints(), file and file.path, vectorized)
    if RunDirectory(workdir).experiment.exists():
        _check_surroundings(run, surroundings)
    else:
        # Raises errors in them before compiling.
        experiment.init_from.read(run.compiled.abstract_state, experiment.model)
    if jax.process_index() == 0:
        RunDirectory(workdir).result.unlink(missing_ok=True)
        record.write_experiment(workdir, run.name, experiment, run.steps)
        record.save_tokenizer(workdir, experiment.data)
        record.write_provenance(workdir, file, overrides or {}, surroundings)
    return loop


def fit(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    epochs: float = 5,
    task: Task | None = None,
    workdir: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Trains a Flax module on two arrays.

    Args:
      model: takes `x` and gives logits (batch, classes) for integer `y`, real numbers otherwise.
      x: inputs, (examples, ...).
      y: targets, (examples,) or (examples, ...).
      epochs: passes over the data.
      task: by default classification for integer `y`, else regression.
      workdir: the run directory; None for a temporary one.
      **settings: further fields of `Experiment`, such as `optimizer` or `batch_size`.

    Returns:
      The finished run: `run.evaluate("train")`, `run.predict(x)`.
    """
    targets = np.asarray(y)
    if task is None:
        task = Classification() if np.issubdtype(targets.dtype, np.integer) else Regression()
    arrays = {task.inputs: np.asarray(x), task.targets: targets}
    data = Arrays({"train": arrays}, test_fraction=0.0, validation_fraction=0.0)
    settings.setdefault("strategy", Single())
    return train(Experiment(model=model, task=task, data=data, epochs=epochs, **settings), workdir)


def open_run(workdir: str | Path, experiment: Experiment | None = None) -> Run:
    """Opens the run in a directory, with its last or best weights, to evaluate and predict.

    Args:
      workdir: the run directory.
      experiment: its experiment; None to execute the directory's `experiment.py`. Only what a
        resumed run may change, such as `strategy` and `runtime`, may differ from the record.

    Raises:
      UserError: the directory holds no checkpoint, or another experiment or other data.
    """
    workdir = Path(workdir)
    if experiment is None:
        experiment = record.read_run(workdir).experiment
    record.check_settings(workdir, experiment)
    run = restore_run(workdir, experiment)
    if record.moved(workdir, experiment):
        known = (read_json(RunDirectory(workdir).environment) or {}).get("data", {})
        found = run.data.fingerprints()
        record.check_data(workdir, {name: x for name, x in found.items() if name in known})
    return run


def restore_run(workdir: Path, experiment: Experiment) -> Run:
    """Restores the weights in a directory into a run of an experiment, without comparing settings.

    Raises:
      UserError: the directory holds no checkpoint, or its arrays do not fit the model.
    """
    enable_compilation_cache()
    name = RunDirectory(workdir).read_experiment().experiment
    run = Run(record.with_tokenizer(workdir, experiment), name, workdir)
    store = CheckpointStore(RunDirectory(workdir).checkpoints, run.print)
    try:
        found = store.restore_latest(run.compiled.abstract_state)
        if found is None:
            raise UserError(f"{workdir} has no checkpoint yet: train it first")
        state, meta = found
        if meta.best_step not in (None, meta.step):
            state, _ = store.restore(meta.best_step, run.compiled.abstract_state)
    finally:
        store.close()
    run.state = run.compiled.shard(state)
    run.result = RunDirectory(workdir).read_result() or {}
    return run


def _name(file: ExperimentFile | None) -> str:
    return file.name if file else "experiment"


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


def _check_surroundings(run: Run, surroundings: Mapping[str, Any]) -> None:
    """Raises for changed data or a shorter run; prints what else may change the results.

    Raises:
      UserError: the data changed, or the run would be shorter.
    """
    directory = RunDirectory(run.workdir)
    before = directory.read_experiment().total_steps
    if run.steps < before:
        raise UserError(
            f"{run.workdir} holds a run of {before} steps: steps and epochs may "
            f"only grow, not shrink to {run.steps}"
        )
    before = read_json(directory.environment) or surroundings
    record.check_data(run.workdir, surroundings["data"])
    for part in ("versions", "devices", "flags"):
        for difference in record.differences(before[part], surroundings[part], part):
            run.print(f"resuming, but results may differ in bits: {difference}")
