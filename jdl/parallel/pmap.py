"""Data parallelism by `jax.pmap`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.metrics import Packed
from jdl.parallel.base import (
    Compilations,
    Functions,
    Steps,
    Strategy,
    abstract_init,
    assemble,
    refuse_carry,
    threefry_kernel,
    with_shardings,
)
from jdl.step import Program
from jdl.typing import Key, PyTree


@dataclass(frozen=True)
class Pmap(Strategy):
    """Data parallelism by `jax.pmap`: one copy of the state and of the program per device.

    Gradients, weights and metrics are summed over the devices inside the step, so results equal
    the other strategies'. Each device folds its index into the key, so dropout masks differ from
    theirs. Compiler options apply to `jit` only and are ignored. Since JAX 0.8 `pmap` is built on
    `jit` and `shard_map` and in maintenance mode; prefer `DataParallel`, which does the same.
    """

    def compile(
        self, program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
    ) -> Steps:
        """See `Strategy.compile`; inside, every array has an axis 0 over devices."""
        copies, compilations = _Copies(self.used()), Compilations()
        shapes = abstract_init(program, in_memory, step_input)
        abstract_state = with_shardings(shapes, jax.tree.map(lambda _: copies.whole, shapes))
        refuse_carry(abstract_state, program, "the strategy pmap averages it over devices")
        functions, data = Functions.of(program, "data"), copies.replicate(dict(in_memory))

        def mapped(name: str, function: Callable[..., Any], **options: Any) -> Any:
            traced = compilations.counted(name, function)
            devices = copies.devices
            return compilations.timed(
                jax.pmap(traced, axis_name="data", devices=devices, **options)
            )

        update = mapped("update", functions.update, donate_argnums=0)
        update_many = mapped("update_many", functions.update_many, donate_argnums=0)
        evaluate = mapped("evaluate", functions.evaluate)
        predict = mapped("predict", functions.predict)
        sample = mapped("sample", functions.sample)
        host_outputs = mapped("host_outputs", functions.host_outputs)

        def step(function: Any, state: PyTree, step_input: Any) -> tuple[PyTree, Packed]:
            state, metrics = function(state, data, step_input)
            return state, copies.first(metrics)

        def initialize(key: Key) -> PyTree:
            batch = step_input
            if jax.process_count() > 1:  # all processes initialize alike, by the whole batch
                from jax.experimental import multihost_utils

                batch = multihost_utils.process_allgather(step_input, tiled=True)
            return copies.replicate(jax.jit(functions.init)(key, dict(in_memory), batch))

        return Steps(
            init=threefry_kernel()(initialize),
            update=lambda state, step_input: step(update, state, step_input),
            update_many=lambda state, step_inputs: step(update_many, state, step_inputs),
            evaluate=lambda state, batch: copies.first(evaluate(state, batch)),
            predict=lambda state, batch: copies.joined(predict(state, batch)),
            sample=lambda state, batch: copies.joined(sample(state, batch)),
            host_outputs=lambda state, batch: copies.joined(host_outputs(state, batch)),
            put=lambda tree: copies.split(tree, 0),
            put_many=lambda tree: copies.split(tree, 1),
            gather=copies.merge,
            shard=copies.replicate,
            abstract_state=abstract_state,
            compilations=compilations,
        )


class _Copies:
    """Arrays with an axis 0 over the devices of this process, as `pmap` takes and returns them."""

    def __init__(self, devices: list[Any]) -> None:
        self.devices = devices
        self._local = [d for d in devices if d.process_index == jax.process_index()]
        # pmap sees the devices of this process; a gathered state spans those of all processes.
        self._each = NamedSharding(Mesh(np.array(self._local), ("data",)), P("data"))
        self.whole = NamedSharding(Mesh(np.array(devices), ("data",)), P())

    def replicate(self, tree: PyTree) -> PyTree:
        """Returns one copy of every leaf per device."""
        return jax.tree.map(self._copy, tree)

    def merge(self, tree: PyTree) -> PyTree:
        """Returns the inverse of `replicate`: arrays that are replicated over all devices."""
        return jax.tree.map(self._merge, tree)

    def first(self, tree: PyTree) -> PyTree:
        """Returns the first device's copy, of values that are equal on all."""
        return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)

    def joined(self, tree: PyTree) -> PyTree:
        """Returns (batch, ...) from (devices, rows, ...)."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    def split(self, tree: PyTree, axis: int) -> PyTree:
        """Splits the rows along `axis` over the devices."""

        def cut(array: np.ndarray) -> jax.Array:
            array, count = np.asarray(array), len(self._local)
            shape = array.shape
            shape = (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
            return assemble(self._each, np.moveaxis(array.reshape(shape), axis, 0))

        return jax.tree.map(cut, tree)

    def _copy(self, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._copy(jax.random.key_data(leaf)))
        parts = [jax.device_put(np.asarray(leaf)[None], device) for device in self._local]
        shape = (len(self._local), *leaf.shape)
        return jax.make_array_from_single_device_arrays(shape, self._each, parts)

    def _merge(self, leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._merge(jax.random.key_data(leaf)))
        parts = [shard.data[0] for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape[1:], self.whole, parts)
