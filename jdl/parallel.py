"""Strategies: how one program is compiled for the devices that are there.

The engine is one `jit` with a global view over a mesh with the axes `data`, `fsdp` and `tensor`.
`Pmap` is the same program under `jax.pmap`. A strategy never changes what is computed.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import read
from jdl.errors import UserError, first_line
from jdl.metrics import Metrics, Packed
from jdl.paths import path_name
from jdl.state import CARRY, TrainState
from jdl.step import Program, evaluate, init, loop, predict, update
from jdl.typing import Batch, Key, PyTree

_log = logging.getLogger(__name__)

BATCH = P(("data", "fsdp"))
"""Rows of a batch are spread over both axes."""


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
      collect: the state as one global TrainState, which does not depend on the strategy.
      spread: the inverse of `collect`, from a state as `like` describes it.
      like: shapes, dtypes and shardings of a collected state.
      traces: how often each function was traced so far, by name.
    """

    init: Callable[[Key], PyTree]
    update: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    update_many: Callable[[PyTree, Any], tuple[PyTree, Packed]]
    evaluate: Callable[[PyTree, Batch], Metrics]
    predict: Callable[[PyTree, Batch], Any]
    put: Callable[[Any], Any]
    put_many: Callable[[Any], Any]
    collect: Callable[[PyTree], TrainState]
    spread: Callable[[TrainState], PyTree]
    like: TrainState
    traces: dict[str, int]


@dataclass(frozen=True)
class Strategy:
    """Where state and batches lie. Subclasses say it with `place`, or compile on their own."""

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

    def mesh(self) -> Mesh:
        """All devices along `data`."""
        return _mesh(self.used(), (len(self.used()), 1, 1))

    def place(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> P:
        """How a leaf of the state is split over the mesh; whole on every device by default.

        Args:
          path: names from the state to the leaf, joined by dots.
          leaf: its shape and dtype.
          mesh: the mesh.
        """
        del path, leaf, mesh
        return P()

    def compile(self, program: Program, resident: Mapping[str, np.ndarray], feed: Any) -> Steps:
        """Prepares the compiled functions; each is compiled at its first call.

        Args:
          program: what to compute.
          resident: arrays from which feeds are read, (examples, ...).
          feed: one feed of this process; its shapes matter.
        """
        mesh, traces = self.mesh(), {}
        whole = NamedSharding(mesh, P())
        rows, stacked = NamedSharding(mesh, BATCH), NamedSharding(mesh, P(None, *BATCH))
        start = _initializer(program, resident, feed)
        like = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=NamedSharding(mesh, self.place(path_name(path), leaf, mesh)),
            ),
            jax.eval_shape(start, jax.random.key(0)),
        )
        if program.accumulate > 1:
            _refuse_carry(like, program, "accumulate splits the batch")
        laid = jax.tree.map(lambda leaf: leaf.sharding, like)
        data = jax.tree.map(lambda array: _assemble(whole, array), dict(resident))

        def one(state: TrainState, data: Any, feed: Any) -> tuple[TrainState, Packed]:
            return _second(Packed.of, update(program, state, read(data, feed)))

        def many(state: TrainState, data: Any, feeds: Any) -> tuple[TrainState, Packed]:
            return loop(lambda carry, feed: one(carry, data, feed), state, feeds)

        chosen = supported(program.compiler_options)

        def compiled(name: str, function: Callable[..., Any], out: Any, **options: Any) -> Any:
            counted = _counted(traces, name, function)
            return jax.jit(counted, out_shardings=out, compiler_options=chosen, **options)

        step = compiled("update", one, (laid, whole), donate_argnums=0)
        steps = compiled("update_many", many, (laid, whole), donate_argnums=0)
        return Steps(
            init=compiled("init", start, laid),
            update=lambda state, feed: step(state, data, feed),
            update_many=lambda state, feeds: steps(state, data, feeds),
            evaluate=compiled("evaluate", lambda s, b: evaluate(program, s, b), whole),
            predict=compiled("predict", lambda s, b: predict(program, s, b), whole),
            put=_putting(rows),
            put_many=_putting(stacked),
            collect=lambda state: state,
            spread=lambda state: state,
            like=like,
            traces=traces,
        )


@dataclass(frozen=True)
class Single(Strategy):
    """One device, the first."""

    def used(self) -> list[Any]:
        """The first device of this process."""
        if self.devices not in (None, 1) or jax.process_count() > 1:
            raise UserError("the strategy single runs on one device of one process")
        return jax.local_devices()[:1]


@dataclass(frozen=True)
class DataParallel(Strategy):
    """Rows of the batch spread over all devices, the state whole on each."""


@dataclass(frozen=True)
class FullySharded(Strategy):
    """Batch, parameters and optimizer state spread over all devices (ZeRO stage 3).

    Of each leaf the largest dimension that the number of devices divides is split; small leaves
    stay whole (Rajbhandari et al., 2020).
    """

    min_elements: int = 1024  # smaller leaves stay whole on every device

    def mesh(self) -> Mesh:
        """All devices along `fsdp`."""
        return _mesh(self.used(), (1, len(self.used()), 1))

    def place(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> P:
        """Splits the largest divisible dimension of params, averages and moments."""
        del path
        count = mesh.shape["fsdp"]
        fits = [i for i, size in enumerate(leaf.shape) if size % count == 0]
        if math.prod(leaf.shape) < self.min_elements or not fits:
            return P()
        axis = max(fits, key=lambda i: leaf.shape[i])
        return P(*(["fsdp" if i == axis else None for i in range(axis + 1)]))


@dataclass(frozen=True)
class Pmap(Strategy):
    """Data parallelism by `jax.pmap`: one copy of the state and of the program per device.

    Gradients, weights and metrics are summed over the devices inside the step, so results equal
    the other strategies'. Each device folds its index into the key, so dropout masks differ from
    theirs. Compiler options are for `jit` and left out. Since JAX 0.8 `pmap` is built on `jit` and
    `shard_map` and in maintenance mode; `DataParallel` does the same and is the one to prefer.
    """

    def compile(self, program: Program, resident: Mapping[str, np.ndarray], feed: Any) -> Steps:
        """As in `Strategy.compile`; every array gains an axis 0 over devices."""
        devices, traces = self.used(), {}
        local = [device for device in devices if device.process_index == jax.process_index()]
        # pmap takes and gives what this process holds; a collected state spans all processes.
        each = NamedSharding(Mesh(np.array(local), ("data",)), P("data"))
        whole = NamedSharding(Mesh(np.array(devices), ("data",)), P())
        start = _initializer(program, resident, feed)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(start, jax.random.key(0)),
        )
        _refuse_carry(like, program, "the strategy pmap averages it over devices")

        def copies(leaf: Any) -> jax.Array:
            """One copy per device, stacked along a new axis 0."""
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(copies(jax.random.key_data(leaf)))
            parts = [jax.device_put(np.asarray(leaf)[None], device) for device in local]
            return jax.make_array_from_single_device_arrays((len(local), *leaf.shape), each, parts)

        def merged(leaf: jax.Array) -> jax.Array:
            """One array that is whole on every device, from its copies."""
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(merged(jax.random.key_data(leaf)))
            parts = [shard.data[0] for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape[1:], whole, parts)

        def spread(tree: PyTree) -> PyTree:
            return jax.tree.map(copies, tree)

        def first(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)

        def split(tree: PyTree, axis: int) -> PyTree:
            def cut(array: np.ndarray) -> jax.Array:
                array = np.asarray(array)
                shape = array.shape
                shape = (*shape[:axis], len(local), shape[axis] // len(local), *shape[axis + 1 :])
                return _assemble(each, np.moveaxis(array.reshape(shape), axis, 0))

            return jax.tree.map(cut, tree)

        def one(state: TrainState, data: Any, feed: Any) -> tuple[TrainState, Packed]:
            return _second(Packed.of, update(program, state, read(data, feed), "data"))

        def many(state: TrainState, data: Any, feeds: Any) -> tuple[TrainState, Packed]:
            return loop(lambda carry, feed: one(carry, data, feed), state, feeds)

        def mapped(name: str, function: Callable[..., Any], **options: Any) -> Any:
            return jax.pmap(
                _counted(traces, name, function), axis_name="data", devices=devices, **options
            )

        data = spread(dict(resident))
        step = mapped("update", one, donate_argnums=0)
        steps = mapped("update_many", many, donate_argnums=0)
        score = mapped("evaluate", lambda s, b: evaluate(program, s, b, "data"))
        guess = mapped("predict", lambda s, b: predict(program, s, b))
        return Steps(
            init=lambda key: spread(jax.jit(start)(key)),
            update=lambda state, feed: _second(first, step(state, data, feed)),
            update_many=lambda state, feeds: _second(first, steps(state, data, feeds)),
            evaluate=lambda state, batch: first(score(state, batch)),
            predict=lambda s, b: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), guess(s, b)),
            put=lambda tree: split(tree, 0),
            put_many=lambda tree: split(tree, 1),
            collect=lambda state: jax.tree.map(merged, state),
            spread=spread,
            like=like,
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


def batch_shapes(resident: Mapping[str, np.ndarray], feed: Any) -> dict[str, Any]:
    """Shapes and dtypes of the global batch of which a feed gives this process its rows."""
    count = jax.process_count()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count * x.shape[0], *x.shape[1:]), x.dtype),
        jax.eval_shape(read, dict(resident), feed),
    )


def _initializer(
    program: Program, resident: Mapping[str, np.ndarray], feed: Any
) -> Callable[[Key], TrainState]:
    """`init` on zeros of the batch's shape: a model's variables depend on nothing else."""
    batch = batch_shapes(resident, feed)

    def start(key: Key) -> TrainState:
        return init(program, key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch))

    return start


def _refuse_carry(like: TrainState, program: Program, reason: str) -> None:
    """Raises a UserError for a model that carries a state of each row from batch to batch."""
    if CARRY in like.collections:
        raise UserError(
            f"{type(program.model).__name__} carries a state of each row from batch to batch, and "
            f"{reason}: do without, or set model.carry to false"
        )


def _assemble(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """A global array of which each process holds its own rows."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(array))


def _putting(sharding: NamedSharding) -> Callable[[Any], Any]:
    if sharding.mesh.size == 1:
        return lambda tree: tree
    return lambda tree: jax.tree.map(lambda x: _assemble(sharding, x), tree)


def _mesh(devices: list[Any], shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def _counted(traces: dict[str, int], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Counts how often JAX traces a function, which it does once per set of shapes."""

    def counted(*args: Any) -> Any:
        traces[name] = traces.get(name, 0) + 1
        return function(*args)

    return counted


def _second(function: Callable[[Any], Any], pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[0], function(pair[1])
