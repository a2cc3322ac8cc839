"""Data parallelism by `jax.pmap`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import read
from jdl.metrics import Packed
from jdl.parallel.base import (
    Steps,
    Strategy,
    assemble,
    counting,
    initializer,
    refuse_carry,
    second,
)
from jdl.state import TrainState
from jdl.step import Program, evaluate, loop, predict, update
from jdl.typing import PyTree


@dataclass(frozen=True)
class Pmap(Strategy):
    """Data parallelism by `jax.pmap`: one copy of the state and of the program per device.

    Gradients, weights and metrics are summed over the devices inside the step, so results equal
    the other strategies'. Each device folds its index into the key, so dropout masks differ from
    theirs. Compiler options are for `jit` and left out. Since JAX 0.8 `pmap` is built on `jit` and
    `shard_map` and in maintenance mode; `DataParallel` does the same and is the one to prefer.
    """

    def compile(
        self, program: Program, in_memory: Mapping[str, np.ndarray], step_input: Any
    ) -> Steps:
        """As in `Strategy.compile`; every array gains an axis 0 over devices."""
        devices, traces = self.used(), {}
        local = [device for device in devices if device.process_index == jax.process_index()]
        # pmap takes and gives what this process holds; a collected state spans all processes.
        each = NamedSharding(Mesh(np.array(local), ("data",)), P("data"))
        whole = NamedSharding(Mesh(np.array(devices), ("data",)), P())
        start = initializer(program, in_memory, step_input)
        abstract_state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(start, jax.random.key(0)),
        )
        refuse_carry(abstract_state, program, "the strategy pmap averages it over devices")

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
                return assemble(each, np.moveaxis(array.reshape(shape), axis, 0))

            return jax.tree.map(cut, tree)

        def one(state: TrainState, data: Any, step_input: Any) -> tuple[TrainState, Packed]:
            return second(Packed.of, update(program, state, read(data, step_input), "data"))

        def many(state: TrainState, data: Any, step_inputs: Any) -> tuple[TrainState, Packed]:
            return loop(lambda carry, step_input: one(carry, data, step_input), state, step_inputs)

        def mapped(name: str, function: Callable[..., Any], **options: Any) -> Any:
            return jax.pmap(
                counting(traces, name, function), axis_name="data", devices=devices, **options
            )

        data = spread(dict(in_memory))
        step = mapped("update", one, donate_argnums=0)
        steps = mapped("update_many", many, donate_argnums=0)
        score = mapped("evaluate", lambda s, b: evaluate(program, s, b, "data"))
        guess = mapped("predict", lambda s, b: predict(program, s, b))
        return Steps(
            init=lambda key: spread(jax.jit(start)(key)),
            update=lambda state, step_input: second(first, step(state, data, step_input)),
            update_many=lambda state, step_inputs: second(first, steps(state, data, step_inputs)),
            evaluate=lambda state, batch: first(score(state, batch)),
            predict=lambda s, b: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), guess(s, b)),
            put=lambda tree: split(tree, 0),
            put_many=lambda tree: split(tree, 1),
            gather=lambda state: jax.tree.map(merged, state),
            shard=spread,
            abstract_state=abstract_state,
            traces=traces,
        )
