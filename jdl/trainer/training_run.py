"""A run that is trained: opens its data, compiles its steps, and updates its state."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.data.pipeline import InMemory, Streamed
from jdl.data.splits import Splits
from jdl.experiment import Experiment
from jdl.metrics import Packed
from jdl.metrics.metric import check_size
from jdl.parallel import Steps, batch_shapes
from jdl.step import Program, host_outputs
from jdl.trainer.run import Run


class TrainingRun(Run):
    """A run whose data is open and whose compiled training steps are prepared."""

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        workdir: Path,
        data: Splits | None = None,
        compile: Callable[[Program, Mapping[str, np.ndarray], Any], Steps] | None = None,
    ) -> None:
        """Opens the data and prepares the compiled steps.

        Args:
          experiment: what is trained.
          name: of the experiment.
          workdir: the run directory.
          data: the splits, if they are open; opened again if they are of another `Data` object.
          compile: prepares the compiled steps; None for the strategy's.

        Raises:
          UserError: data, model, task and devices do not fit together.
        """
        super().__init__(
            experiment,
            name,
            workdir,
            lambda: data.with_data(experiment.data) if data else Splits(experiment.data),
        )
        self._prepare(self.data.epoch_size)
        _ = self._host_metric_splits  # raises before anything is compiled
        pipeline = self.pipeline("train")
        size, seed = experiment.batch_size, experiment.seed
        if isinstance(pipeline, Streamed):
            step_input = pipeline.step_input(0, size, seed, self.shard, cut=False)
            self._validate(step_input, "train", "a batch of ")
        else:
            step_input = pipeline.step_input(0, size, seed, self.shard)
        in_memory = pipeline.arrays if isinstance(pipeline, InMemory) else {}
        self.batch = batch_shapes(in_memory, step_input)
        compile = compile or experiment.strategy.compile
        self.compiled = compile(self.program, in_memory, step_input)
        if self._has_host_outputs and self._host_metric_splits:
            # What is wrong with them would otherwise show after the training.
            outputs = functools.partial(host_outputs, self.program)
            jax.eval_shape(outputs, self.compiled.abstract_state, self.batch)
        if experiment.task.metrics:
            metrics = self.abstract_metrics()
            for split in self.data.names:
                check_size(metrics, self.data.count(split), size, split)

    @property
    def evaluates_train(self) -> bool:
        """Whether training ends with an evaluation of the whole training split."""
        wanted = self.experiment.final_train_evaluation
        return isinstance(self.pipeline("train"), InMemory) if wanted is None else wanted

    def set_lazy_state(self, fetch: Callable[[], Any]) -> None:
        """Sets a function that returns the state when it is first read."""
        self._fetch = fetch
        self.__dict__.pop("state", None)

    def step_inputs(self, start: int) -> Iterator[Any]:
        """Yields step inputs from a step on; streamed batches are validated one by one."""
        size, seed = self.experiment.batch_size, self.experiment.seed
        pipeline, workers = self.pipeline("train"), self.experiment.runtime.workers
        for step_input in pipeline.step_inputs(start, size, seed, self.shard, workers):
            if isinstance(pipeline, Streamed):
                self._validate(step_input, "train", "a batch of ")
            yield step_input

    def update(self, step_inputs: Sequence[Any]) -> Packed:
        """Takes one training step per input, all in one call to the devices.

        Returns:
          The metrics of the steps, which may still be being computed.
        """
        compiled = self.compiled
        if len(step_inputs) == 1:
            self.state, metrics = compiled.update(self.state, compiled.put(step_inputs[0]))
        else:
            stacked = jax.tree.map(lambda *each: np.stack(each), *step_inputs)
            self.state, metrics = compiled.update_many(self.state, compiled.put_many(stacked))
        return metrics
