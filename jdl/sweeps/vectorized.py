"""Runs whose programs differ only in numbers, compiled once and stepped together by `jax.vmap`.

The numbers, such as learning rates, are arguments of the compiled functions. The runs' states are
stacked along a new axis 0, which is sharded over the devices: one call takes a step of all runs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import to_batch
from jdl.metrics import Packed
from jdl.parallel.base import (
    BATCH,
    Compilations,
    Functions,
    Steps,
    Strategy,
    abstract_init,
    assemble,
    putting,
    supported,
    with_shardings,
)
from jdl.state import TrainState
from jdl.step import Program, scan_or_unroll
from jdl.typing import PyTree

Numbers = Mapping[str, Any]
"""Numbers of a run by path, or arrays in their place."""

RUNS = "runs"
"""Mesh axis over which runs are sharded."""


class VectorizedSteps:
    """Several runs, compiled as one; each function is compiled at its first call.

    Args:
      strategy: shared by all runs, as are its devices.
      program: builds a run's program from its numbers.
      numbers: of each run, by the same paths.
      shared_inputs: whether all runs read the same examples.
      in_memory: arrays from which step inputs are gathered, (examples, ...).
      step_input: a step input of one run; its shapes matter.

    Attributes:
      compilations: traces of each function, and seconds spent compiling.
    """

    def __init__(
        self,
        strategy: Strategy,
        program: Callable[[Numbers], Program],
        numbers: Sequence[Numbers],
        shared_inputs: bool,
        in_memory: Mapping[str, np.ndarray],
        step_input: Any,
    ) -> None:
        self._program, self._numbers, self._shared = program, numbers, shared_inputs
        self._in_memory, self._step_input = dict(in_memory), step_input
        self.compilations = Compilations()
        mesh = strategy.mesh()
        self._mesh = Mesh(mesh.devices.reshape(-1), (RUNS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, P())
        self._rows, self._many_rows = (
            NamedSharding(mesh, spec) for spec in (BATCH, P(None, *BATCH))
        )
        self._shapes = abstract_init(program(numbers[0]), self._in_memory, step_input)
        self._shardings = strategy.shardings(self._shapes, mesh)
        self._updates: dict[tuple[int, bool], Any] = {}

    def check(self, own: Program) -> None:
        """Traces all functions with arrays in place of the numbers.

        Args:
          own: the program of one of the runs, with its numbers.

        Raises:
          Exception: of any kind, where a number must be known, or a function cannot be mapped.
        """
        alone = abstract_init(own, self._in_memory, self._step_input)
        if structure(alone) != structure(self._shapes):
            raise ValueError("the structure of the optimizer's state depends on it")
        count = len(self._numbers)
        numbers = {
            path: jax.ShapeDtypeStruct((count,), jnp.float32, weak_type=True)
            for path in self._numbers[0]
        }
        states, step_inputs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
            (self._shapes, self._step_input),
        )
        mapped = jax.vmap(self._call("update"), in_axes=(0, 0, None, 0))
        jax.eval_shape(mapped, numbers, states, self._in_memory, step_inputs)
        batch = jax.eval_shape(to_batch, self._in_memory, self._step_input)
        for name in ("evaluate", "predict"):
            jax.eval_shape(self._call(name), self._numbers[0], self._shapes, batch)

    def steps(self, index: int, step_input: Any) -> Steps:
        """Returns the functions of one run by itself, which are compiled once for all runs.

        Args:
          index: of the run.
          step_input: its first, by which data-dependent variables are initialized.
        """
        numbers, data, compiled = self._numbers[index], self._data, self._compiled
        put = putting(self._rows)
        update, update_many = compiled["update_alone"], compiled["update_many_alone"]
        return Steps(
            init=lambda key: compiled["init"](numbers, key, data, put(step_input)),
            update=lambda state, step_input: update(numbers, state, data, step_input),
            update_many=lambda state, inputs: update_many(numbers, state, data, inputs),
            evaluate=functools.partial(compiled["evaluate"], numbers),
            predict=functools.partial(compiled["predict"], numbers),
            sample=functools.partial(compiled["sample"], numbers),
            host_outputs=functools.partial(compiled["host_outputs"], numbers),
            put=put,
            put_many=putting(self._many_rows),
            gather=lambda state: state,
            shard=lambda state: state,
            abstract_state=with_shardings(self._shapes, self._shardings),
            compilations=self.compilations,
        )

    def stack(self, runs: Sequence[int], states: Sequence[TrainState]) -> "Stack":
        """Stacks the states of some runs, to be updated together.

        Args:
          runs: indices into the `numbers` that the steps were made with.
          states: the state of each; copies of the first pad the stack to a multiple of devices.
        """
        size = len(runs) + -len(runs) % self._mesh.size
        # Copies of the first run fill the last device.
        filled = [*range(len(runs)), *[0] * (size - len(runs))]
        numbers = {
            path: self._put(_column([self._numbers[runs[i]][path] for i in filled]), P(RUNS))
            for path in self._numbers[0]
        }
        stacked = self._compiled["stack"](*[states[i] for i in filled])

        def update(states: TrainState, inputs: Sequence[Any]) -> tuple[TrainState, Packed]:
            many, spec = len(inputs) > 1, P() if self._shared else P(RUNS)
            if not self._shared:
                inputs = [_stacked([each[i] for i in filled]) for each in inputs]
            placed = self._put(_stacked(inputs) if many else inputs[0], P(*([None] * many), *spec))
            return self._update(size, many)(numbers, states, self._data, placed)

        return Stack(stacked, update, self._compiled["state_of"])

    @functools.cached_property
    def _data(self) -> dict[str, jax.Array]:
        return {name: assemble(self._replicated, a) for name, a in self._in_memory.items()}

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        return supported(self._program(self._numbers[0]).compiler_options)

    def _put(self, tree: PyTree, spec: P) -> PyTree:
        if self._mesh.size == 1:
            return tree  # the compiled call transfers host arrays faster than device_put
        sharding = NamedSharding(self._mesh, spec)
        return jax.tree.map(lambda array: jax.device_put(array, sharding), tree)

    def _call(self, name: str) -> Callable[..., Any]:
        """Returns a function of `Functions` with the numbers as a further first argument."""
        return lambda numbers, *args: getattr(Functions.of(self._program(numbers)), name)(*args)

    def _jit(self, name: str, function: Callable[..., Any], out: Any, **options: Any) -> Any:
        traced = self.compilations.counted(name, function)
        jitted = jax.jit(traced, out_shardings=out, compiler_options=self._options, **options)
        return self.compilations.timed(jitted)

    @functools.cached_property
    def _compiled(self) -> dict[str, Any]:
        shardings, replicated, call = self._shardings, self._replicated, self._call

        def stack(*states: TrainState) -> TrainState:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def state_of(states: TrainState, index: jax.Array) -> TrainState:
            return jax.tree.map(lambda leaf: leaf[index], states)

        # The state, argument 1, is donated: its buffers are reused for the new state.
        update: Any = {"out": (shardings, replicated), "donate_argnums": 1}
        return {
            "init": self._jit("init", call("init"), shardings),
            "update_alone": self._jit("update_alone", call("update"), **update),
            "update_many_alone": self._jit("many_alone", call("update_many"), **update),
            "evaluate": self._jit("evaluate", call("evaluate"), replicated),
            "predict": self._jit("predict", call("predict"), replicated),
            "sample": self._jit("sample", call("sample"), replicated),
            "host_outputs": self._jit("host_outputs", call("host_outputs"), replicated),
            "stack": jax.jit(stack, out_shardings=NamedSharding(self._mesh, P(RUNS))),
            "state_of": jax.jit(state_of, out_shardings=shardings),
        }

    def _update(self, size: int, many: bool) -> Any:
        """Returns the step of so many runs, or several steps of them in a scan; compiled once."""
        if (size, many) not in self._updates:
            self._updates[size, many] = self._make_update(size, many)
        return self._updates[size, many]

    def _make_update(self, size: int, many: bool) -> Any:
        inputs, runs = P() if self._shared else P(RUNS), P(RUNS)
        axes = (0, 0, None, None if self._shared else 0)
        mapped = jax.vmap(self._call("update"), in_axes=axes)
        if self._mesh.size > 1:
            # Each device steps its own runs; without shard_map XLA would look for communication.
            specs = {"in_specs": (runs, runs, P(), inputs), "out_specs": (runs, runs)}
            mapped = jax.shard_map(mapped, mesh=self._mesh, check_vma=False, **specs)

        def update(numbers: Numbers, states: TrainState, data: Any, step_inputs: Any) -> Any:
            if not many:
                return mapped(numbers, states, data, step_inputs)
            return scan_or_unroll(
                lambda carry, step_input: mapped(numbers, carry, data, step_input),
                states,
                step_inputs,
            )

        name = "update_many" if many else "update"
        if name in self.compilations.traces:
            name = f"{name} of {size}"  # a step of another size, not a retrace
        out = (runs, P(None, RUNS) if many else runs)
        shardings = tuple(NamedSharding(self._mesh, spec) for spec in out)
        return self._jit(name, update, shardings, donate_argnums=1)


class Stack:
    """Runs whose states are stacked.

    Args:
      states: of all runs, stacked along axis 0.
      update: returns the next states and the metrics; consumes the states.
      state_of: returns the state of the run at an index.
    """

    def __init__(
        self,
        states: TrainState,
        update: Callable[[TrainState, Sequence[Any]], tuple[TrainState, Packed]],
        state_of: Callable[[TrainState, int], TrainState],
    ) -> None:
        self._states, self._update, self._state_of = states, update, state_of

    def update(self, step_inputs: Sequence[Any]) -> Packed:
        """Takes one step of all runs per input, all in one call to the devices.

        Args:
          step_inputs: for each step a list with one input per run; one input if they are shared.

        Returns:
          Metrics with an axis over runs, which may still be being computed.
        """
        self._states, metrics = self._update(self._states, step_inputs)
        return metrics

    def state_of(self, index: int) -> TrainState:
        """Returns the current state of one run."""
        return self._state_of(self._states, index)


def structure(state: PyTree) -> Any:
    """Returns the tree structure of a state with the shape and dtype of each leaf."""
    leaves, made = jax.tree.flatten(state)
    return made, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _column(values: Sequence[float]) -> jax.Array:
    """Returns numbers as a weakly typed array, which like numbers keeps the dtype of operands."""
    return jnp.concatenate([jax.lax.full((1,), value) for value in values])
