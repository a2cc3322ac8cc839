"""Strategies: a program compiled by one `jit` with a global view over a mesh of devices."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import to_batch
from jdl.errors import UserError, first_line
from jdl.metrics import Metrics, Packed
from jdl.paths import path_name
from jdl.state import CARRY, TrainState
from jdl.step import (
    Program,
    evaluate,
    host_outputs,
    init,
    predict,
    sample,
    scan_or_unroll,
    update,
)
from jdl.tracing import ROWS
from jdl.typing import Batch, Key, PyTree

_log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
"""Axis names of every mesh: data parallel, fully sharded, tensor parallel."""

BATCH = P(ROWS)
"""How the rows of a batch are sharded."""


class Compilations:
    """Counts traces of compiled functions and times the calls that compile.

    Attributes:
      traces: number of times that JAX traced each function, by name; once per set of shapes.
      seconds: seconds spent in calls that had to compile.
    """

    def __init__(self) -> None:
        self.traces: dict[str, int] = {}
        self.seconds = 0.0
        self._count = 0

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, to be compiled, with a count of its traces."""

        def traced(*args: Any) -> Any:
            self.traces[name] = self.traces.get(name, 0) + 1
            self._count += 1
            return function(*args)

        return traced

    def timed(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the compiled function; calls that trace add their duration to `seconds`."""

        def call(*args: Any) -> Any:
            count, start = self._count, time.perf_counter()
            result = compiled(*args)
            if self._count > count:
                self.seconds += time.perf_counter() - start
            return result

        return call


@dataclass(frozen=True)
class Functions:
    """The pure functions of a program that a strategy compiles."""

    init: Callable[[Key, Any, Any], TrainState]
    """`(key, data, step_input) -> state`, a fresh one, given the first batch."""
    update: Callable[[TrainState, Any, Any], tuple[TrainState, Packed]]
    """`(state, data, step_input) -> (state, packed metrics)`, one step."""
    update_many: Callable[[TrainState, Any, Any], tuple[TrainState, Packed]]
    """The same for step inputs stacked along axis 0, in one scan."""
    evaluate: Callable[[TrainState, Batch], Metrics]  # `(state, batch) -> metrics`
    predict: Callable[[TrainState, Batch], Any]  # `(state, batch) -> prediction`
    sample: Callable[[TrainState, Batch], Any]  # `(state, batch) -> samples`
    host_outputs: Callable[[TrainState, Batch], Any]  # `(state, batch) -> outputs`

    @classmethod
    def of(cls, program: Program, axis_name: str | None = None) -> "Functions":
        """Returns the functions of a program; `axis_name` is the mapped axis under `pmap`."""

        def one(state: TrainState, data: Any, step_input: Any) -> tuple[TrainState, Packed]:
            state, metrics = update(program, state, to_batch(data, step_input), axis_name)
            return state, Packed.of(metrics)  # a single array: one transfer to the host per step

        def many(state: TrainState, data: Any, step_inputs: Any) -> tuple[TrainState, Packed]:
            return scan_or_unroll(lambda carry, x: one(carry, data, x), state, step_inputs)

        return cls(
            init=lambda key, data, step_input: init(program, key, to_batch(data, step_input)),
            update=one,
            update_many=many,
            evaluate=lambda state, batch: evaluate(program, state, batch, axis_name),
            predict=lambda state, batch: predict(program, state, batch),
            sample=lambda state, batch: sample(program, state, batch),
            host_outputs=lambda state, batch: host_outputs(program, state, batch),
        )


@dataclass(frozen=True)
class Steps:
    """A program compiled for its devices."""

    init: Callable[[Key], PyTree]  # a fresh state from a key, and the run's first batch
    update: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    """One step on a step input; donates the state, returns the new one and the metrics."""
    update_many: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    """Several steps on step inputs stacked along axis 0; metrics are stacked too."""
    evaluate: Callable[[PyTree, Batch], Metrics]  # metrics of one batch, equal on every device
    predict: Callable[[PyTree, Batch], Any]  # the prediction for one batch, as one global array
    sample: Callable[[PyTree, Batch], Any]  # the same of the task's samples
    host_outputs: Callable[[PyTree, Batch], Any]  # the same of what its host metrics are made of
    put: Callable[[Any], Any]
    """Transfers a step input or batch, of which each process holds its rows, to the devices.

    With one device it is the identity, since the call itself transfers faster.
    """
    put_many: Callable[[Any], Any]  # the same for stacked step inputs
    gather: Callable[[PyTree], TrainState]  # one global state, independent of the strategy
    shard: Callable[[TrainState], PyTree]  # the inverse, of a state like `abstract_state`
    abstract_state: TrainState  # shapes, dtypes and shardings of a gathered state
    compilations: Compilations  # traces of each function, and seconds spent compiling


@dataclass(frozen=True)
class Strategy:
    """How state and batches are placed on devices.

    Subclasses override `mesh_shape` and `partition_spec`, or `compile`.
    """

    devices: int | None = None  # use the first N; None: all

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise UserError(f"strategy.devices must be at least 1, not {self.devices}")

    def used(self) -> list[Any]:
        """Returns the devices of this run, over all processes.

        Raises:
          UserError: fewer are available.
        """
        found = jax.devices()
        if self.devices is not None and self.devices > len(found):
            raise UserError(
                f"strategy.devices is {self.devices}, but only {len(found)} devices are available"
            )
        return found[: self.devices]

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """Returns the sizes of the axes `data`, `fsdp`, `tensor`; by default all along `data`."""
        return (count, 1, 1)

    def mesh(self) -> Mesh:
        """Returns the mesh of this run's devices."""
        kinds = (AxisType.Auto,) * len(AXES)
        sizes = self.mesh_shape(len(self.used()))
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=self.used())

    def num_batch_shards(self) -> int:
        """Returns the number of equal parts that a batch is split into."""
        shape = self.mesh().shape
        return shape["data"] * shape["fsdp"]

    def shardings(self, state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
        """Returns the sharding of each leaf of a state, given its shapes and dtypes."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(
                mesh, self.partition_spec(path_name(path), leaf, mesh)
            ),
            state,
        )

    def partition_spec(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> P:
        """Returns how a leaf of the state is sharded; by default it is replicated.

        Args:
          path: path of the leaf within the state, such as `params.Dense_0.kernel`.
          leaf: its shape and dtype.
          mesh: the mesh.
        """
        del path, leaf, mesh
        return P()

    def compile(
        self, program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
    ) -> Steps:
        """Returns the compiled functions; each is compiled at its first call.

        Args:
          program: what to compute.
          in_memory: arrays that step inputs index, (examples, ...); empty if data is streamed.
          step_input: the first step input of this process, by which data-dependent variables are
            initialized; of the others only its shapes matter.
        """
        mesh, compilations = self.mesh(), Compilations()
        replicated = NamedSharding(mesh, P())
        rows, stacked = NamedSharding(mesh, BATCH), NamedSharding(mesh, P(None, *BATCH))
        shapes = abstract_init(program, in_memory, step_input)
        shardings = self.shardings(shapes, mesh)
        abstract_state = with_shardings(shapes, shardings)
        if program.num_microbatches > 1:
            refuse_carry(abstract_state, program, "num_microbatches splits the batch")
        data = jax.tree.map(lambda array: assemble(replicated, array), dict(in_memory))
        functions, options = Functions.of(program), supported(program.compiler_options)

        def compiled(name: str, function: Callable[..., Any], out: Any, **jit: Any) -> Any:
            traced = compilations.counted(name, within(mesh, function))
            jitted = jax.jit(traced, out_shardings=out, compiler_options=options, **jit)
            return compilations.timed(jitted)

        # The state is donated: its buffers are reused for the new state.
        out = (shardings, replicated)
        update = compiled("update", functions.update, out, donate_argnums=0)
        update_many = compiled("update_many", functions.update_many, out, donate_argnums=0)
        init = threefry_kernel()(compiled("init", functions.init, shardings))
        put = putting(rows)
        return Steps(
            init=lambda key: init(key, data, put(step_input)),
            update=lambda state, step_input: update(state, data, step_input),
            update_many=lambda state, step_inputs: update_many(state, data, step_inputs),
            evaluate=compiled("evaluate", functions.evaluate, replicated),
            predict=compiled("predict", functions.predict, replicated),
            sample=compiled("sample", functions.sample, replicated),
            host_outputs=compiled("host_outputs", functions.host_outputs, replicated),
            put=put,
            put_many=putting(stacked),
            gather=lambda state: state,
            shard=lambda state: state,
            abstract_state=abstract_state,
            compilations=compilations,
        )


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Returns shapes and dtypes with the sharding of each leaf."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def supported(options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Returns the options that this version of XLA knows, and logs a warning for the others.

    Option names change between versions of XLA.
    """
    found: dict[str, Any] = {}
    for name, value in options:
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except Exception as error:  # jaxlib does not export its type
            _log.warning("ignored compiler option %s=%s: %s", name, value, first_line(error))
        else:
            found[name] = value
    return found


def state_bytes(state: TrainState) -> int:
    """Returns the bytes of parameters and optimizer state on one device of this process."""
    leaves = jax.tree.leaves((state.params, state.opt_state))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def batch_shapes(in_memory: Mapping[str, np.ndarray], step_input: Any) -> dict[str, Any]:
    """Returns shapes and dtypes of the global batch, given this process's step input."""
    count = jax.process_count()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count * x.shape[0], *x.shape[1:]), x.dtype),
        jax.eval_shape(to_batch, dict(in_memory), step_input),
    )


@contextlib.contextmanager
def threefry_kernel() -> Iterator[None]:
    """Compiles calls within with one kernel for each draw of random bits on GPUs.

    By default XLA unrolls the rounds of threefry into the kernel of each initializer. The bits are
    the same, but that program takes longer to compile than a training step: 24 s instead of 7 s for
    ResNet-50, 26 s instead of 3 s for GPT-2 124M, for an H100 on one CPU core.
    """
    name = "jax_threefry_gpu_kernel_lowering"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def abstract_init(
    program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
) -> TrainState:
    """Returns shapes and dtypes of a fresh state, for the global batch of a step input."""
    batch = batch_shapes(in_memory, step_input)
    return jax.eval_shape(lambda key, batch: init(program, key, batch), jax.random.key(0), batch)


def refuse_carry(abstract_state: TrainState, program: Program, reason: str) -> None:
    """Raises a UserError for a model that carries the state of each row between batches."""
    if CARRY in abstract_state.collections:
        raise UserError(
            f"{type(program.model).__name__} carries the state of each row between batches, but "
            f"{reason}: change that, or set model.carry to false"
        )


def assemble(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """Returns a global array from the rows of each process."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(array))


def putting(sharding: NamedSharding) -> Callable[[Any], Any]:
    """Returns a function that transfers arrays to the devices; with one device the identity."""
    if sharding.mesh.size == 1:
        return lambda tree: tree
    return lambda tree: jax.tree.map(lambda x: assemble(sharding, x), tree)


def within(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, traced within the mesh so that ops can read its axes."""

    def called(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return called
