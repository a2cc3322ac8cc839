"""Training, from Python: an experiment, or a module and two arrays."""

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
from jdl.trainer.loop import Loop
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
    """Trains an experiment, or goes on with it where its directory holds a run.

    Args:
      experiment: what to train, overrides included.
      workdir: the run directory; None for a temporary one that goes with the returned run.
      file: where the experiment comes from, kept in the directory with `overrides`.
      overrides: what was changed in the experiment of that file, by path.
      data: the splits of `experiment.data`, where the caller has them open.
      hooks: the caller's own, after those of the experiment and not part of its record.

    Returns:
      The finished run. A run that had finished before is returned as it is.

    Raises:
      UserError: something does not fit, before anything is compiled wherever that can be known;
        nothing already saved is lost.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    configure_allocator(experiment.malloc_arenas)
    enable_compilation_cache()
    temporary = None if workdir else tempfile.mkdtemp(prefix="jdl-")
    workdir = Path(workdir or temporary or ".")
    if run := finished(experiment, workdir, file):
        return run
    with opened(experiment, workdir, file=file, data=data, hooks=hooks) as run:
        if temporary:
            weakref.finalize(run, shutil.rmtree, temporary, ignore_errors=True)
        with run.interruption:
            prepared(run, experiment, file=file, overrides=overrides).go()
    return run


def finished(experiment: Experiment, workdir: Path, file: ExperimentFile | None) -> Run | None:
    """The run in a directory, where it has come to its end.

    Raises:
      UserError: the directory holds a run of something else.
    """
    if not RunDirectory(workdir).experiment.exists():
        return None
    name = _name(file)
    record.check_resumable(workdir, name, experiment)
    return open_run(workdir, experiment, name) if record.finished(workdir, experiment) else None


@contextlib.contextmanager
def opened(
    experiment: Experiment,
    workdir: Path,
    *,
    file: ExperimentFile | None = None,
    data: Splits | None = None,
    hooks: Sequence[Hook] = (),
    compile: Callable[..., Steps] | None = None,
) -> Iterator[Run]:
    """A run that is to begin or to go on in its directory, which is locked meanwhile.

    Args:
      experiment, workdir, file, data, hooks: as for `train`.
      compile: what prepares the run's steps; None: its strategy.
    """
    known = record.with_tokenizer(workdir, experiment)
    with _directory(workdir):
        watched = dataclasses.replace(known, hooks=(*known.hooks, *hooks))
        if data is not None and known is not experiment:
            data = data.of(known.data)
        yield Run(watched, _name(file), workdir, data, compile)


def prepared(
    run: Run,
    experiment: Experiment,
    *,
    file: ExperimentFile | None = None,
    overrides: Mapping[str, Json] | None = None,
    together: int = 1,
) -> Loop:
    """What takes an opened run to its end; its directory now says what the run is.

    Args:
      run: the run.
      experiment: as for `train`, without what the directory or the caller added to it.
      file: where the experiment comes from.
      overrides: what was changed in it.
      together: runs that share the devices.
    """
    workdir = run.workdir
    for split in run.splits:
        run.pipeline(split)  # what is wrong with it is said before anything is compiled
    loop = Loop(run)
    surroundings = record.environment(run.data.fingerprints(), file and file.path, together)
    if RunDirectory(workdir).experiment.exists():
        _check_surroundings(run, surroundings)
    else:
        # What is wrong with them is said now.
        experiment.init_from.read(run.compiled.abstract_state, experiment.model)
    if jax.process_index() == 0:
        RunDirectory(workdir).result.unlink(missing_ok=True)
        record.mark(workdir, run.name, experiment, run.steps)
        record.keep_tokenizer(workdir, experiment.data)
        record.describe(workdir, file, overrides or {}, surroundings)
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
      task: what is learned; by default classification of integers, or regression.
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


def open_run(workdir: Path, experiment: Experiment, name: str) -> Run:
    """The run that a directory holds, with its last or best weights, for scoring and prediction.

    Raises:
      UserError: the directory holds no checkpoint of this experiment.
    """
    enable_compilation_cache()
    run = Run(record.with_tokenizer(workdir, experiment), name, workdir)
    store = CheckpointStore(RunDirectory(workdir).checkpoints, run.print)
    try:
        found = store.restore_latest(run.compiled.abstract_state)
        if found is None:
            raise UserError(f"{workdir} holds no checkpoint yet")
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
    """Makes a run directory and locks it; leaves nothing behind where no run came of it.

    Raises:
      UserError: it cannot be written, is locked, or holds something that is no run.
    """
    if jax.process_index() != 0:
        yield
        return
    ours = (".lock", ".experiment.json.tmp")  # left by a run that ended before it was one
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
    """Refuses other data or a shorter run; says what else keeps it from going on bit for bit.

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
    if changed := record.differences(before["data"], surroundings["data"], "data"):
        raise UserError(f"the data of {run.workdir} changed since it began: {'; '.join(changed)}")
    for part in ("versions", "devices", "flags"):
        for difference in record.differences(before[part], surroundings[part], part):
            run.print(f"going on, but not bit for bit as before: {difference}")
