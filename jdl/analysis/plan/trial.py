"""A training step traced under several settings, and the memory it needs on a device."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jdl import step
from jdl.analysis.flops import localized
from jdl.analysis.memory import nbytes, peak
from jdl.data.examples import apply_transforms
from jdl.data.pipeline import fits_in_memory, training_shapes
from jdl.data.sources import epoch_size
from jdl.experiment import Experiment
from jdl.parallel import Strategy
from jdl.parallel.base import AXES
from jdl.state import TrainState
from jdl.step import Program
from jdl.tracing import tracing_errors
from jdl.trainer.checks import check_vocabulary
from jdl.typing import PyTree


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes on one device at the peak of a step."""

    parameters: int
    optimizer: int  # moments, averages, and the model's other collections
    gradients: int
    activations: int  # saved for the backward pass, and temporaries
    data: int  # the batch, and the training split if it is in memory

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(dataclasses.astuple(self))


class Trial:
    """Traces an experiment's step under several settings, each once.

    Raises:
      UserError: its data is missing, or has tokens outside of the model's vocabulary.
    """

    def __init__(self, experiment: Experiment) -> None:
        check_vocabulary(experiment)
        self.experiment = experiment
        source = experiment.data.splits()["train"]
        self.examples = epoch_size(source)
        self.steps = experiment.total_steps(self.examples)
        self.example = apply_transforms(experiment.data, source[0])
        self.row = sum(array.nbytes for array in self.example.values())
        whole = self.row * len(source)
        self.in_memory = whole if fits_in_memory(experiment.data, whole) else 0
        self._known: dict[Any, tuple[TrainState, Any]] = {}

    def traced(
        self, rows: int, precision: str | None = None, remat: bool | None = None
    ) -> tuple[TrainState, Any]:
        """The abstract state, and the jaxpr of a step on this number of rows."""
        own = self.experiment
        remat = getattr(own.model, "remat", None) if remat is None else remat
        key = rows, precision or own.precision, remat
        if key not in self._known:
            self._known[key] = self._trace(*key)
        return self._known[key]

    def _trace(self, rows: int, precision: Any, remat: bool | None) -> tuple[TrainState, Any]:
        experiment = self.experiment
        model = experiment.model if remat is None else experiment.model.clone(remat=remat)
        changed = dataclasses.replace(experiment, model=model, precision=precision)
        program = Program(
            changed.compute_model(),
            experiment.task,
            experiment.transformation(self.steps),
            experiment.data.device_transforms,
            experiment.num_microbatches,
        )
        batch = {
            name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype)
            for name, array in self.example.items()
        }
        batch["mask"] = jax.ShapeDtypeStruct((rows,), bool)
        batch = training_shapes(experiment.data, batch)
        with tracing_errors({name: array.shape for name, array in self.example.items()}):
            state = jax.eval_shape(functools.partial(step.init, program), jax.random.key(0), batch)
            traced = jax.make_jaxpr(functools.partial(step.update, program))(state, batch)
            return state, localized(traced)

    def rows(self, strategy: Strategy, devices: int, batch_size: int) -> int:
        """Rows of a batch on one device, rounded up to whole micro-batches."""
        data, fsdp, _ = strategy.mesh_shape(devices)
        each = self.experiment.num_microbatches
        return math.ceil(batch_size / (data * fsdp * each)) * each

    def bytes(
        self,
        strategy: Strategy,
        devices: int,
        rows: int | None = None,
        precision: str | None = None,
        remat: bool | None = None,
    ) -> Bytes:
        """The memory of one device; defaults are the experiment's own settings.

        Raises:
          UserError: the strategy cannot run it.
        """
        sizes = strategy.mesh_shape(devices)
        rows = rows or self.rows(strategy, devices, self.experiment.batch_size)
        state, jaxpr = self.traced(rows, precision, remat)
        shardings = strategy.shardings(state, AbstractMesh(sizes, AXES))
        dims = [_dimension(where.spec, "tensor") for where in jax.tree.leaves(shardings)]
        # Matrix products read parameters and write gradients that are split over `tensor` alone:
        # shards over `fsdp` are gathered before a product and reduce-scattered after it.
        products = sum(
            nbytes(leaf) // (1 if _dimension(where.spec, "tensor") is None else sizes[2])
            for leaf, where in zip(
                *map(jax.tree.leaves, (state.params, shardings.params)), strict=True
            )
        )
        parameters = _device_bytes(state.params, shardings.params)
        gathered = 2 * (products - parameters)
        return Bytes(
            parameters=parameters,
            optimizer=_device_bytes(state.opt_state, shardings.opt_state)
            + _device_bytes(state.collections, shardings.collections),
            gradients=parameters,
            activations=max(peak(jaxpr, dims, sizes[2]) - products, 0) + gathered,
            data=rows * self.row + self.in_memory,
        )


def _dimension(spec: Any, axis: str) -> int | None:
    """The dimension of a leaf that is split over an axis of the mesh."""
    return list(spec).index(axis) if axis in spec else None


def _device_bytes(tree: PyTree, shardings: PyTree) -> int:
    """Bytes of a tree's leaves on one device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in pairs
    )
