"""What a strategy is, and how its program is compiled: one `jit` with a global view over a mesh."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import read
from jdl.errors import UserError, first_line
from jdl.metrics import Metrics, Packed
from jdl.paths import path_name
from jdl.state import CARRY, TrainState
from jdl.step import Program, evaluate, init, loop, predict, update
from jdl.tracing import ROWS
from jdl.typing import Batch, Key, PyTree

_log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
"""Names of the axes of every mesh."""

BATCH = P(ROWS)
"""How the rows of a batch are spread."""


@dataclass(frozen=True)
class Steps:
    """A program compiled for its devices. States and batches stay where `init` and `put` lay them.

    Attributes:
      init: a fresh state from a key.
      update: one step on one feed; consumes its state and gives the new one and the metrics.
      update_many: several steps on feeds stacked along a new axis 0, their metrics stacked alike.
      evaluate: metrics of one batch, equal on every device.
      predict: the prediction for one batch, as one global array.
      put: lays a feed or a batch, of which each process holds its rows, on the devices; where
        there is but one device it leaves that to the call, which is several times quicker at it.
      put_many: the same for stacked feeds.
      gather: the state as one global TrainState, which does not depend on the strategy.
      spread: the inverse of `gather`, from a state as `abstract_state` describes it.
      abstract_state: shapes, dtypes and shardings of a collected state.
      traces: how often each function was traced so far, by name.
    """

    init: Callable[[Key], PyTree]
    update: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    update_many: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    evaluate: Callable[[PyTree, Batch], Metrics]
    predict: Callable[[PyTree, Batch], Any]
    put: Callable[[Any], Any]
    put_many: Callable[[Any], Any]
    gather: Callable[[PyTree], TrainState]
    shard: Callable[[TrainState], PyTree]
    abstract_state: TrainState
    traces: dict[str, int]


@dataclass(frozen=True)
class Strategy:
    """How state and batches are placed on devices.

    Subclasses override `mesh_shape` and `partition_spec`, or `compile`.
    """

    devices: int | None = None  # use the first N; None: all

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise UserError(f"strategy.devices is a number of devices, not {self.devices}")

    def used(self) -> list[Any]:
        """The devices of this run, over all processes.

        Raises:
          UserError: there are fewer than asked for.
        """
        found = jax.devices()
        if self.devices is not None and self.devices > len(found):
            raise UserError(
                f"strategy.devices asks for {self.devices} devices and there are {len(found)}"
            )
        return found[: self.devices]

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """How many of `count` devices lie along `data`, `fsdp` and `tensor`; all along `data`."""
        return (count, 1, 1)

    def mesh(self) -> Mesh:
        """The devices of this run, in the order of their axes."""
        kinds = (AxisType.Auto,) * len(AXES)
        sizes = self.mesh_shape(len(self.used()))
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=self.used())

    def num_batch_shards(self) -> int:
        """Parts of equal size that a batch is shared out in."""
        shape = self.mesh().shape
        return shape["data"] * shape["fsdp"]

    def shardings(self, state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
        """The sharding of each leaf of a state, of which shapes and dtypes matter."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(
                mesh, self.partition_spec(path_name(path), leaf, mesh)
            ),
            state,
        )

    def partition_spec(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> P:
        """How a leaf of the state is split over the mesh; whole on every device by default.

        Args:
          path: names from the state to the leaf, joined by dots.
          leaf: its shape and dtype.
          mesh: the mesh.
        """
        del path, leaf, mesh
        return P()

    def compile(
        self, program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
    ) -> Steps:
        """Prepares the compiled functions; each is compiled at its first call.

        Args:
          program: what to compute.
          resident: arrays from which feeds are read, (examples, ...).
          feed: one feed of this process; its shapes matter.
        """
        mesh, traces = self.mesh(), {}
        whole = NamedSharding(mesh, P())
        rows, stacked = NamedSharding(mesh, BATCH), NamedSharding(mesh, P(None, *BATCH))
        start = initializer(program, in_memory, step_input)
        shapes = jax.eval_shape(start, jax.random.key(0))
        shardings = self.shardings(shapes, mesh)
        abstract_state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes,
            shardings,
        )
        if program.num_microbatches > 1:
            refuse_carry(abstract_state, program, "num_microbatches splits the batch")
        data = jax.tree.map(lambda array: assemble(whole, array), dict(in_memory))

        def one(state: TrainState, data: Any, step_input: Any) -> tuple[TrainState, Packed]:
            return second(Packed.of, update(program, state, read(data, step_input)))

        def many(state: TrainState, data: Any, step_inputs: Any) -> tuple[TrainState, Packed]:
            return loop(lambda carry, step_input: one(carry, data, step_input), state, step_inputs)

        chosen = supported(program.compiler_options)

        def compiled(name: str, function: Callable[..., Any], out: Any, **options: Any) -> Any:
            counted = counting(traces, name, within(mesh, function))
            return jax.jit(counted, out_shardings=out, compiler_options=chosen, **options)

        step = compiled("update", one, (shardings, whole), donate_argnums=0)
        steps = compiled("update_many", many, (shardings, whole), donate_argnums=0)
        return Steps(
            init=compiled("init", start, shardings),
            update=lambda state, step_input: step(state, data, step_input),
            update_many=lambda state, step_inputs: steps(state, data, step_inputs),
            evaluate=compiled("evaluate", lambda s, b: evaluate(program, s, b), whole),
            predict=compiled("predict", lambda s, b: predict(program, s, b), whole),
            put=putting(rows),
            put_many=putting(stacked),
            gather=lambda state: state,
            shard=lambda state: state,
            abstract_state=abstract_state,
            traces=traces,
        )


def supported(options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Those options that this version of XLA knows; says which it does not.

    Options are no part of what is computed, and their names change between versions.
    """
    found: dict[str, Any] = {}
    for name, value in options:
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except Exception as error:  # of jaxlib, and not public
            _log.warning(
                "the compiler option %s=%s is left out: %s", name, value, first_line(error)
            )
        else:
            found[name] = value
    return found


def state_bytes(state: TrainState) -> int:
    """Bytes of parameters and optimizer state that one device of this process holds."""
    leaves = jax.tree.leaves((state.params, state.opt_state))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def batch_shapes(in_memory: Mapping[str, np.ndarray], step_input: Any) -> dict[str, Any]:
    """Shapes and dtypes of the global batch of which a feed gives this process its rows."""
    count = jax.process_count()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count * x.shape[0], *x.shape[1:]), x.dtype),
        jax.eval_shape(read, dict(in_memory), step_input),
    )


def initializer(
    program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
) -> Callable[[Key], TrainState]:
    """`init` on zeros of the batch's shape: a model's variables depend on nothing else."""
    batch = batch_shapes(in_memory, step_input)

    def start(key: Key) -> TrainState:
        return init(program, key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch))

    return start


def refuse_carry(abstract_state: TrainState, program: Program, reason: str) -> None:
    """Raises a UserError for a model that carries a state of each row from batch to batch."""
    if CARRY in abstract_state.collections:
        raise UserError(
            f"{type(program.model).__name__} carries a state of each row from batch to batch, and "
            f"{reason}: do without, or set model.carry to false"
        )


def assemble(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """A global array of which each process holds its own rows."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(array))


def putting(sharding: NamedSharding) -> Callable[[Any], Any]:
    """How trees of arrays are laid on the devices; left to the call where there is but one."""
    if sharding.mesh.size == 1:
        return lambda tree: tree
    return lambda tree: jax.tree.map(lambda x: assemble(sharding, x), tree)


def counting(traces: dict[str, int], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Counts how often JAX traces a function, which it does once per set of shapes."""

    def counted(*args: Any) -> Any:
        traces[name] = traces.get(name, 0) + 1
        return function(*args)

    return counted


def within(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced so that what it calls can ask for the mesh."""

    def called(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return called


def second(function: Callable[[Any], Any], pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair with a function applied to its second part."""
    return pair[0], function(pair[1])
