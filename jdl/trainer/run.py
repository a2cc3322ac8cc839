"""A run, as `jdl.train` returns it: evaluates, predicts, and holds parameters and result."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl import metrics as metrics_lib
from jdl.data.base import Data
from jdl.data.conversion import inputs_by_name, is_frame
from jdl.data.examples import apply_transforms, stack_examples
from jdl.data.pipeline import InMemory, Pipeline, Shard, Streamed, training_shapes
from jdl.data.resize import RandomResizedCrop, Resize
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, read_rows
from jdl.media import Media
from jdl.metrics import Metrics
from jdl.metrics.metric import check_size
from jdl.optimizers import averaged_params
from jdl.parallel import Steps
from jdl.state import TrainState
from jdl.step import check_training, evaluate, init, predict
from jdl.tasks import Game, HostMetrics, Task, Translation
from jdl.tasks.observe import observe
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.tracing import tracing_errors
from jdl.trainer import sampling
from jdl.trainer.checks import check_experiment, check_scaled, check_shape, check_tokens
from jdl.trainer.interrupt import Interrupted, Interruption
from jdl.trainer.probing import probe_accuracies
from jdl.typing import Json, Key


class Run:
    """An experiment with its data, compiled steps, state and directory; `jdl.train` returns one.

    Attributes:
      experiment: what is trained, with overrides.
      name: of the experiment.
      workdir: the run directory.
      examples: number of examples in an epoch of training.
      steps: total number of steps.
      steps_per_epoch: steps per pass over the training split, rounded up.
      batch: shapes and dtypes of a training batch before the device transforms.
      result: contents of `result.json`, once the run is finished.
    """

    def __init__(
        self, experiment: Experiment, name: str, workdir: Path, open_data: Callable[[], Splits]
    ) -> None:
        """Checks the experiment. A subclass calls `_prepare`, and sets `batch` and `compiled`.

        Args:
          experiment: what is trained.
          name: of the experiment.
          workdir: the run directory.
          open_data: opens the data, when it is first read.

        Raises:
          UserError: fields of the experiment do not fit together.
        """
        check_experiment(experiment)
        self.experiment, self.name, self.workdir = experiment, name, workdir
        self.result: dict[str, Json] = {}
        self.interruption = Interruption()
        self.is_temporary = False  # the directory is deleted with the run
        self.shard = Shard(jax.process_index(), jax.process_count())
        self._fetch: Callable[[], Any] = lambda: None
        self._predictions: dict[str, Any] = {}  # shape and dtype, by split
        self._traced: dict[frozenset[Any], Any] = {}  # the same, by shapes of a batch
        self._open_data = open_data
        self.batch: Mapping[str, Any]
        self.compiled: Steps

    def _prepare(self, examples: int) -> None:
        """Sets the number of steps, and with it the program, for examples in an epoch."""
        self.examples = examples
        self.steps = self.experiment.total_steps(examples)
        self.steps_per_epoch = max(1, -(-examples // self.experiment.batch_size))
        self.program = self.experiment.program(self.steps)

    @functools.cached_property
    def data(self) -> Splits:
        """The splits of the data."""
        return self._open_data()

    @functools.cached_property
    def state(self) -> Any:
        """The state on the devices; after training that of the last or best step."""
        return self._fetch()

    @property
    def params(self) -> Any:
        """Parameters used for evaluation, averaged if the optimizer averages, as global arrays."""
        return self.evaluation_state(self.gather_state()).params

    @functools.cached_property
    def prediction_data(self) -> Data:
        """The data whose transforms inputs of predictions go through."""
        data, fixed = self.experiment.data, (Resize, RandomResizedCrop)
        if not self.experiment.task.any_size:
            return data
        kept = tuple(each for each in data.transforms if not isinstance(each, fixed))
        return dataclasses.replace(data, transforms=kept)

    @property
    def prediction(self) -> Any:
        """Shape and dtype of the prediction for one training batch."""
        return self._predictions["train"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, without the test split."""
        return tuple(name for name in self.data.names if name != "test")

    @property
    def traces(self) -> Mapping[str, int]:
        """Number of traces of each compiled function, by name."""
        return self.compiled.compilations.traces

    @property
    def history(self) -> dict[str, dict[str, list[Any]]]:
        """Metrics in the order of training: by split, then by name, with `step` and `epoch`.

        Those of `train` are means over `runtime.log_every` steps. `pandas.DataFrame` takes a split.
        """
        found: dict[str, dict[str, list[Any]]] = {}
        for row in read_rows(RunDirectory(self.workdir).metrics):
            columns = found.setdefault(row["split"], {})
            for name, value in ({k: row[k] for k in ("step", "epoch")} | row["metrics"]).items():
                columns.setdefault(name, []).append(value)
        return found

    def evaluate(
        self, split: str = "test", state: Any = None, key: Key | None = None
    ) -> dict[str, Any]:
        """Evaluates a whole split; each example counts once.

        Args:
          split: `train`, `validation` or `test`.
          state: the state to evaluate, such as `event.state` in a hook, with averaged weights if
            the optimizer averages; None for the run's own.
          key: of the random numbers that the task draws, if it draws any: the same key gives the
            same metrics, in any batch size. None: key 0.

        Returns:
          Metrics by name: floats, and NumPy arrays such as a confusion matrix.

        Raises:
          UserError: there is no such split.
        """
        return self.evaluate_with_host_metrics(split, state, key)[0]

    def evaluate_with_host_metrics(
        self, split: str = "test", state: Any = None, key: Key | None = None
    ) -> tuple[dict[str, Any], HostMetrics | None]:
        """Evaluates as `evaluate`, and also returns the task's host metrics if it defines any."""
        pipeline = self.pipeline(split)
        state = self._placed(state)
        size, last = self.experiment.batch_size, None
        total: Metrics = {}
        predicted: list[Any] = []
        compiled = self.compiled
        outputs = compiled.host_outputs if self._has_host_outputs else compiled.predict
        batches = pipeline.evaluation_batches(size, self.shard, self.experiment.runtime.workers)
        for step, batch in enumerate(batches):
            if isinstance(pipeline, Streamed):
                self._validate(batch, split, "a batch of ")
            seeds = row_seeds(key, self.shard.positions(step, size))
            placed = self.compiled.put({**batch, ROW_SEEDS: seeds})
            scores = self.compiled.evaluate(state, placed)
            if last is None:
                check_size(scores, len(pipeline), size, split)
            else:
                total = metrics_lib.merge([total, jax.device_get(last)])
            last = scores
            if split in self._host_metric_splits:
                found = jax.device_get(outputs(state, placed))
                predicted.append(_rows((found, batch), batch["mask"]))
            if self.interruption.requested:
                raise Interrupted
        metrics = metrics_lib.compute(metrics_lib.merge([total, jax.device_get(last)]))
        metrics |= probe_accuracies(self, split, state)
        if not predicted:
            return metrics, None
        found, batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *predicted)
        host_metrics = self.experiment.task.compute_metrics(found, batch, self.experiment.data)
        return {**metrics, **host_metrics.metrics}, host_metrics

    def predict(self, x: Any, key: Key | None = None, *, state: Any = None) -> Any:
        """Predicts from raw inputs, after applying the experiment's transforms.

        Args:
          x: inputs (examples, ...), as in the data set before transforms, an array or a frame; or a
            dict of such arrays by name, which `Table` and `Series` require: they scale columns, so
            that their examples, and what their `reader` returns, are scaled already.
          key: of the random numbers that the task draws, as in `evaluate`.
          state: as in `evaluate`.

        Returns:
          The task's predictions, (examples, ...) NumPy arrays (see the task's `predict`).

        Raises:
          UserError: an input does not fit the run, or may be raw columns where scaled are read.
        """
        first, *others = self.experiment.task.input_names
        if is_frame(x) or not isinstance(x, Mapping):
            check_scaled(self.experiment.data, first, is_frame(x))
        if others and not isinstance(x, Mapping):
            raise UserError(f"the model has several inputs: pass a dict with {first}, {others[0]}")
        arrays = inputs_by_name(x, first, self.experiment.data.input_columns())
        count = len(next(iter(arrays.values())))
        if not count:
            raise UserError("there is nothing to predict: the input has no examples")
        data, indices = self.prediction_data, np.arange(count)
        rows = [apply_transforms(data, {k: v[i] for k, v in arrays.items()}) for i in indices]
        for name in self.experiment.task.input_names:
            if name in arrays and name not in rows[0]:
                raise UserError(
                    f"the input's {name!r} holds {arrays[name][0]!r:.40}, where the model reads "
                    f"numbers: convert it"
                )
        return self.predict_rows(stack_examples(rows, indices, "input"), key, state=state)

    def predict_rows(
        self, inputs: Mapping[str, np.ndarray], key: Key | None = None, *, state: Any = None
    ) -> Any:
        """Predicts as `predict`, from examples to which the host transforms were applied.

        Raises:
          UserError: an array is missing, has another shape than in training, or holds tokens that
            the model does not know.
        """
        for name in self.experiment.task.input_names:
            if name not in inputs:
                known = ", ".join(map(repr, inputs))
                raise UserError(
                    f"the input has no array {name!r}, which the model reads (it has {known})"
                )
        for name, array in inputs.items():
            check_shape(self, name, array.shape[1:], "the input's ")
        check_tokens(self.experiment, inputs, self.experiment.task.input_names, "the input")
        if jax.process_count() > 1:
            raise UserError("predict runs in one process: open the run directory in one")
        count, size = len(next(iter(inputs.values()))), self.experiment.batch_size
        state = self._placed(state)
        parts = []
        for begin in range(0, count, size):
            index = np.minimum(np.arange(begin, begin + size), count - 1)
            batch = {name: array[index] for name, array in inputs.items()}
            batch["mask"] = np.arange(begin, begin + size) < count
            batch[ROW_SEEDS] = row_seeds(key, np.arange(begin, begin + size))
            output = jax.device_get(self.compiled.predict(state, self.compiled.put(batch)))
            parts.append(jax.tree.map(lambda leaf: leaf[: min(size, count - begin)], output))  # noqa: B023
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def sample(
        self,
        count: int = 16,
        key: Key | None = None,
        *,
        split: str | None = None,
        label: int | Sequence[int] | None = None,
        state: Any = None,
    ) -> Media:
        """Samples the model: images, texts or sounds, as the task renders them.

        A generative model draws them; other models predict the first examples of a split.

        Args:
          count: number of samples; the first are the same whatever their number.
          key: of the random numbers; None: key 0.
          split: whose examples a conditional model reads; None: validation, or train without it.
          label: class of the samples, or of each, where the task has classes; None: drawn for
            each.
          state: as in `evaluate`.

        Raises:
          UserError: there is no such split or class, or `count` is below 1.
        """
        return sampling.sample(self, count, key, split, label, self._placed(state))

    def edit(
        self,
        image: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        strength: float | None = None,
        count: int = 16,
        key: Key | None = None,
        state: Any = None,
    ) -> Media:
        """Changes an image with the model: all of it, or the pixels of a mask.

        Args:
          image: of the shape and dtype of the run's images, as in the data set before transforms.
          mask: bool (height, width), True for pixels that are drawn anew; the others are returned
            exactly. None: all change.
          strength: above 0 (no change), at most 1 (a new image); None: 1 with a mask, else 0.5.
          count: number of results; the first are the same whatever their number.
          key: of the random numbers; None: key 0.
          state: as in `evaluate`.

        Raises:
          UserError: the task cannot edit images, or image, mask or strength are not as above.
        """
        return sampling.edit(self, image, mask, strength, count, key, self._placed(state))

    def gather_state(self) -> TrainState:
        """Returns the state as one global TrainState, independent of the strategy."""
        return self.compiled.gather(self.state)

    def _placed(self, state: Any) -> Any:
        """Returns a gathered state, or the run's own, on the devices, as it is evaluated."""
        placed = self.state if state is None else self.compiled.shard(state)
        return self.evaluation_state(placed)

    def evaluation_state(self, state: Any) -> Any:
        """Returns the state with averaged parameters, if the optimizer averages."""
        return state.replace(params=averaged_params(state.opt_state, state.params))

    def pipeline(self, split: str) -> Pipeline:
        """Returns the pipeline of a split; data in memory is validated once.

        Raises:
          UserError: there is no such split, or its examples are not valid for task and model.
        """
        pipeline = self.data.pipeline(split)
        if split not in self._predictions:
            in_memory = isinstance(pipeline, InMemory)
            arrays = pipeline.arrays if in_memory else pipeline.examples(np.zeros(1, int))
            self._predictions[split] = self._abstract_prediction(arrays)
            if in_memory:
                self._validate(arrays, split)
        return pipeline

    def abstract_metrics(self) -> Metrics:
        """The metrics of an evaluation by name, without numbers."""
        return jax.eval_shape(
            lambda state, batch: evaluate(self.program, state, batch),
            self.compiled.abstract_state,
            self.batch,
        )

    def higher_is_better(self, metric: str) -> bool | None:
        """Whether a higher value of a metric is better; None if unknown."""
        known = self.experiment.task.higher_is_better(metric)
        if known is None and metric in (metrics := self.abstract_metrics()):
            return getattr(metrics[metric], "higher_is_better", None)
        return known

    def print(self, text: str) -> None:
        """Prints a line for the user, on the first process only."""
        if jax.process_index() != 0:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader is gone

    def _abstract_prediction(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Returns shape and dtype of the prediction for a batch of such examples.

        Raises:
          UserError: the model cannot take them.
        """
        size = self.experiment.batch_size
        batch = {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in arrays.items()}
        batch["mask"] = jax.ShapeDtypeStruct((size,), bool)
        if (shapes := frozenset(batch.items())) in self._traced:  # by another split
            return self._traced[shapes]

        def abstract_predict(key: jax.Array, batch: Any) -> Any:
            return predict(self.program, init(self.program, key, batch), batch)

        with tracing_errors({name: value.shape[1:] for name, value in arrays.items()}):
            with observe() as observed:
                prediction = jax.eval_shape(abstract_predict, jax.random.key(0), batch)
            checks = observed.layers or isinstance(self.experiment.task, Game)
            if checks and not self._predictions:  # once, of the training split
                check_training(self.program, training_shapes(self.experiment.data, batch))
        self._traced[shapes] = prediction
        return prediction

    def _validate(self, arrays: Any, split: str, part: str = "") -> None:
        """Validates a split in memory, or the `part` of it that a streamed batch is.

        Raises:
          UserError: it is not valid for the task, or holds tokens beyond the model's vocabulary.
        """
        where = f"{part}split {split!r}"
        task = self.experiment.task
        task.validate_batch(arrays, self._predictions[split], where)
        # The targets of other tasks may be integers that are no tokens.
        names = (*task.input_names, task.targets)[: None if isinstance(task, Translation) else -1]
        check_tokens(self.experiment, arrays, names, where)

    @property
    def _has_host_outputs(self) -> bool:
        """Whether host metrics are made of something else than the predictions."""
        return type(self.experiment.task).host_outputs is not Task.host_outputs

    @functools.cached_property
    def _host_metric_splits(self) -> set[str]:
        """Splits with host metrics; none in multi-process runs, where a warning is printed.

        Raises:
          UserError: a package that they need is not installed.
        """
        task, data = self.experiment.task, self.experiment.data
        found = {split for split in self.data.names if task.has_host_metrics(split, data)}
        if found and jax.process_count() > 1:
            self.print(
                "host metrics of predictions are left out, since they need a single process: run "
                "`jdl evaluate` in one process for them"
            )
            return set()
        return found


def _rows(tree: Any, mask: np.ndarray) -> Any:
    """Returns the rows of arrays where a mask is True."""
    return jax.tree.map(lambda leaf: leaf[mask], tree)
