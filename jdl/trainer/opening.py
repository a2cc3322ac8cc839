"""Opens the run of a directory, to evaluate and predict."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.checkpoint import CheckpointStore
from jdl.config.objects import rebuild_object
from jdl.data.base import location_paths
from jdl.data.splits import Splits
from jdl.data.tokenizers import Saved
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import DataRecord, RunDirectory, read_json
from jdl.parallel import batch_shapes
from jdl.paths import path_name
from jdl.state import TrainState
from jdl.tasks import Task
from jdl.trainer import record
from jdl.trainer.compilation_cache import enable_compilation_cache
from jdl.trainer.run import Run


class OpenedRun(Run):
    """A run that evaluates and predicts, whose data is opened when it is first read."""

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        workdir: Path,
        recorded: DataRecord,
        open_data: Callable[[], Splits],
    ) -> None:
        """Prepares the compiled steps for batches as they are recorded.

        Args:
          experiment: what was trained.
          name: of the experiment.
          workdir: the run directory.
          recorded: of the data.
          open_data: opens the data.
        """
        super().__init__(experiment, name, workdir, open_data)
        self._prepare(recorded.examples["train"])
        # The state holds no optimizer: an evaluation needs none, and averages are saved apart.
        self.program = dataclasses.replace(
            self.program, optimizer=optax.with_extra_args_support(optax.identity())
        )
        step_input = {
            key: np.zeros((experiment.batch_size, *each["shape"]), each["dtype"])
            for key, each in recorded.arrays.items()
        }
        self._predictions["train"] = self._abstract_prediction(step_input)
        step_input["mask"] = np.ones(experiment.batch_size, bool)
        self.batch = batch_shapes({}, step_input)
        self.compiled = experiment.strategy.compile(self.program, {}, step_input)


def open(
    workdir: str | Path,
    experiment: Experiment | None = None,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    allow_changed_data: bool = False,
) -> Run:
    """Opens the run in a directory, with its last or best weights, to evaluate and predict.

    A run directory is complete: predictions need no other file. An evaluation reads the data, which
    must be that of the training.

    Args:
      workdir: the run directory.
      experiment: its experiment; None to execute the directory's `experiment.py`, or to import the
        classes of a run that was started from Python. Only what a
        resumed run may change, such as `strategy` and `runtime`, may differ from the record, and
        `data` with `allow_changed_data`.
      model: of a run that was started from Python, if its class cannot be imported, since it was
        defined in a script or notebook.
      task: likewise.
      allow_changed_data: evaluate on data that has changed since the training, or, with an
        `experiment`, on other data or with other transforms.

    Raises:
      UserError: the directory holds no checkpoint, or another experiment.
    """
    workdir = Path(workdir)
    given = {name: each for name, each in (("model", model), ("task", task)) if each is not None}
    if experiment is not None:
        free = ("data",) if allow_changed_data else ()
        experiment = record.find_run(workdir, experiment, free=free).experiment
    elif given:
        experiment = record.read_objects(workdir, **given)
    else:
        experiment = record.read_run(workdir).experiment
    return restore_run(workdir, experiment, allow_changed_data)


def restore_run(
    workdir: Path,
    experiment: Experiment,
    allow_changed_data: bool = False,
    *,
    calibrated: bool = True,
) -> Run:
    """Opens a run like `open`, without comparing the experiment with the record.

    Args:
      workdir: the run directory.
      experiment: what was trained.
      allow_changed_data: as for `open`.
      calibrated: whether the task applies the calibration that the directory holds.

    Raises:
      UserError: the directory holds no checkpoint, or its arrays do not fit the model.
    """
    enable_compilation_cache()
    directory = RunDirectory(workdir)
    recorded, name = directory.read_data(), directory.read_experiment().experiment
    fitted = dict(recorded.fitted)
    if directory.tokenizer.exists():
        fitted["tokenizer"] = Saved(str(workdir)).build(()).to_json()
    task = _calibrated(directory, experiment.task) if calibrated else experiment.task
    data = experiment.data.with_fitted(fitted)
    experiment = dataclasses.replace(experiment, data=data, task=task)

    def open_data() -> Splits:
        place = next(iter(location_paths(experiment.data)), "")
        try:
            splits = Splits(experiment.data)
            # A trial of a search does not read the test split, and recorded none.
            prints = splits.fingerprints(recorded.examples)
        except UserError as error:
            remedy = f" (if the data is elsewhere, name the place with --{place})" if place else ""
            raise UserError(f"{error}{remedy}") from error
        changed = record.changed_data(workdir, prints)
        if changed and not allow_changed_data:
            remedy = f", or name another place with --{place}" if place else ""
            raise UserError(
                f"the data of {workdir} changed since it began: {changed} (evaluate on it "
                f"nevertheless with --allow-changed-data{remedy})"
            )
        return splits

    run = OpenedRun(experiment, name, workdir, recorded, open_data)
    store = CheckpointStore(directory.checkpoints, run.print)
    try:
        arrays, step = store.evaluation_arrays(), store.evaluation_step()
    finally:
        store.close()
    if arrays is None:
        raise UserError(f"{workdir} has no checkpoint yet: train it first")
    run.state = run.compiled.shard(_filled(run, {**arrays, "step": jnp.asarray(step, jnp.int32)}))
    run.result = directory.read_result() or {}
    return run


def _calibrated(directory: RunDirectory, task: Task) -> Task:
    """Returns the task with the calibration and conformal sets that a directory holds."""
    known = read_json(directory.calibration)
    if known is None:
        return task
    parts = {
        name: rebuild_object(known[name], f"{directory.calibration}: {name}")
        for name in ("calibration", "conformal")
    }
    return dataclasses.replace(task, **parts)


def restore_finished(found: record.FoundRun) -> Run:
    """Opens a finished run; data that is located elsewhere than in training is compared at once."""
    run = restore_run(found.workdir, found.experiment)
    if found.is_moved:
        _ = run.data
    return run


def checkpoint_states(run: Run) -> Iterator[tuple[int, TrainState]]:
    """Yields step and state of each checkpoint that a run has kept, oldest first, as evaluated.

    Raises:
      UserError: one is damaged, or does not fit the model.
    """
    store = CheckpointStore(RunDirectory(run.workdir).checkpoints, run.print)
    try:
        state = run.gather_state()
        kept = {"params": state.params, "collections": state.collections}
        for step in store.steps():
            filled = _stored(run, step, kept, store.step_arrays(step))
            placed = {**filled, "step": jnp.asarray(step, jnp.int32), "opt_state": ()}
            yield step, dataclasses.replace(state, **placed)
    finally:
        store.close()


def _stored(run: Run, step: int, kept: Any, arrays: dict[str, Any]) -> Any:
    """Returns a tree of arrays with those of a checkpoint, by path."""

    def stored(path: Any, leaf: Any) -> Any:
        found = arrays.get(path_name(path))
        if found is None or found.shape != leaf.shape:
            raise UserError(
                f"the checkpoint of step {step} in {run.workdir} does not fit the model: "
                f"{path_name(path)} is another, or missing"
            )
        return found

    return jax.tree_util.tree_map_with_path(stored, kept)


def _filled(run: Run, arrays: dict[str, Any]) -> Any:
    """The state of a run with the arrays of a checkpoint, by path.

    Raises:
      UserError: they do not fit the model; names the first that differs.
    """
    abstract = run.compiled.abstract_state
    wanted = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    for name in sorted((wanted.keys() ^ arrays.keys()) - {"key"}):
        problem = "lack" if name in wanted else "have"
        raise UserError(
            f"the checkpoint of {run.workdir} does not fit the model: it {problem} {name}"
        )
    for name, leaf in wanted.items():
        if name != "key" and arrays[name].shape != leaf.shape:
            raise UserError(
                f"the weights in {run.workdir} do not fit the model: {name} has shape "
                f"{arrays[name].shape}, the model's {leaf.shape}"
            )
    arrays["key"] = jax.random.key(run.experiment.seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays[path_name(path)], abstract)
