"""Runs whose programs differ in numbers alone: compiled once, and stepped together by `jax.vmap`.

The numbers, such as learning rates, are arguments of the compiled functions. The runs' states are
stacked along a new axis 0, which is shared out among the devices: a step of all is one call.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.data.pipeline import read
from jdl.metrics import Packed
from jdl.parallel.base import (
    BATCH,
    Steps,
    Strategy,
    assemble,
    counting,
    initializer,
    putting,
    second,
    supported,
)
from jdl.state import TrainState
from jdl.step import Program, evaluate, loop, predict, update
from jdl.typing import Batch, Key, PyTree

Numbers = Mapping[str, Any]
"""Numbers of a run by path, or arrays in their place."""

RUNS = "runs"
"""The axis of a mesh over which runs are shared out."""


class Vectorized:
    """Several runs, compiled as one; each function is compiled at its first call.

    Args:
      strategy: of all of them; they share its devices.
      program: makes a run's program of its numbers.
      numbers: of each run, by the same paths.
      resident: arrays from which feeds are read, (examples, ...).
      feed: one feed of one run; its shapes matter.

    Attributes:
      traces: how often each function was traced so far, by name.
    """

    def __init__(
        self,
        strategy: Strategy,
        program: Callable[[Numbers], Program],
        numbers: Sequence[Numbers],
        in_memory: Mapping[str, np.ndarray],
        step_input: Any,
    ) -> None:
        self._program, self._numbers = program, numbers
        self._resident, self._feed = dict(in_memory), step_input
        self.traces: dict[str, int] = {}
        mesh = strategy.mesh()
        self._mesh = Mesh(mesh.devices.reshape(-1), (RUNS,), axis_types=(AxisType.Auto,))
        self._whole = NamedSharding(mesh, P())
        self._rows, self._many_rows = (
            NamedSharding(mesh, spec) for spec in (BATCH, P(None, *BATCH))
        )
        self._shapes = jax.eval_shape(self._start, numbers[0], jax.random.key(0))
        self._laid = strategy.shardings(self._shapes, mesh)
        self._steppings: dict[tuple[int, bool, bool], Any] = {}

    def check(self, own: Program) -> None:
        """Traces everything with arrays in place of the numbers.

        Args:
          own: the program of one of the runs, as it is alone.

        Raises:
          Exception: of any kind, where a number must be known, or something cannot be mapped over.
        """
        alone = jax.eval_shape(initializer(own, self._resident, self._feed), jax.random.key(0))
        if structure(alone) != structure(self._shapes):
            raise ValueError("what the optimizer's state is made of depends on it")
        count = len(self._numbers)
        numbers = {
            path: jax.ShapeDtypeStruct((count,), jnp.float32, weak_type=True)
            for path in self._numbers[0]
        }
        states, step_inputs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
            (self._shapes, self._feed),
        )
        mapped = jax.vmap(self._one, in_axes=(0, 0, None, 0))
        jax.eval_shape(mapped, numbers, states, self._resident, step_inputs)
        batch = jax.eval_shape(read, self._resident, self._feed)
        for function in (self._evaluate, self._predict):
            jax.eval_shape(function, self._numbers[0], self._shapes, batch)

    def steps(self, index: int) -> Steps:
        """The functions of one run alone, which are compiled once for all."""
        numbers, data, compiled = self._numbers[index], self._data, self._compiled
        return Steps(
            init=functools.partial(compiled["init"], numbers),
            update=lambda state, step_input: compiled["update_alone"](
                numbers, state, data, step_input
            ),
            update_many=lambda state, step_inputs: compiled["many_alone"](
                numbers, state, data, step_inputs
            ),
            evaluate=functools.partial(compiled["evaluate"], numbers),
            predict=functools.partial(compiled["predict"], numbers),
            put=putting(self._rows),
            put_many=putting(self._many_rows),
            gather=lambda state: state,
            shard=lambda state: state,
            abstract_state=jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                self._shapes,
                self._laid,
            ),
            traces=self.traces,
        )

    def stack(self, runs: Sequence[int], states: Sequence[TrainState], alike: bool) -> "Stack":
        """Runs as they stand, to be stepped together.

        Args:
          runs: which.
          states: of each.
          alike: whether all are fed the same.
        """
        size = len(runs) + -len(runs) % self._mesh.size
        filled = [*range(len(runs)), *[0] * (size - len(runs))]
        numbers = {
            path: self._lay(_column([self._numbers[runs[i]][path] for i in filled]), P(RUNS))
            for path in self._numbers[0]
        }
        stacked = self._compiled["stack"](*[states[i] for i in filled])

        def step(states: TrainState, fed: Sequence[Any]) -> tuple[TrainState, Packed]:
            many = len(fed) > 1
            if not alike:
                fed = [_stacked([each[i] for i in filled]) for each in fed]
            spec = P() if alike else P(RUNS)
            step_input = (
                self._lay(_stacked(fed), P(None, *spec)) if many else self._lay(fed[0], spec)
            )
            return self._stepping(size, alike, many)(numbers, states, self._data, step_input)

        return Stack(stacked, step, self._compiled["part"])

    @functools.cached_property
    def _data(self) -> dict[str, jax.Array]:
        """The resident arrays, whole on every device."""
        return {name: assemble(self._whole, array) for name, array in self._resident.items()}

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        return supported(self._program(self._numbers[0]).compiler_options)

    def _lay(self, tree: PyTree, spec: P) -> PyTree:
        if self._mesh.size == 1:
            return tree  # the call does it quicker
        where = NamedSharding(self._mesh, spec)
        return jax.tree.map(lambda array: jax.device_put(array, where), tree)

    def _start(self, numbers: Numbers, key: Key) -> TrainState:
        return initializer(self._program(numbers), self._resident, self._feed)(key)

    def _one(
        self, numbers: Numbers, state: TrainState, data: Any, step_input: Any
    ) -> tuple[TrainState, Packed]:
        return second(Packed.of, update(self._program(numbers), state, read(data, step_input)))

    def _evaluate(self, numbers: Numbers, state: TrainState, batch: Batch) -> Any:
        return evaluate(self._program(numbers), state, batch)

    def _predict(self, numbers: Numbers, state: TrainState, batch: Batch) -> Any:
        return predict(self._program(numbers), state, batch)

    def _jit(self, name: str, function: Callable[..., Any], out: Any, **options: Any) -> Any:
        counted = counting(self.traces, name, function)
        return jax.jit(counted, out_shardings=out, compiler_options=self._options, **options)

    @functools.cached_property
    def _compiled(self) -> dict[str, Any]:
        laid, whole = self._laid, self._whole

        def many(numbers: Numbers, state: TrainState, data: Any, step_inputs: Any) -> Any:
            return loop(
                lambda carry, step_input: self._one(numbers, carry, data, step_input),
                state,
                step_inputs,
            )

        def stack(*states: TrainState) -> TrainState:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def part(states: TrainState, place: jax.Array) -> TrainState:
            return jax.tree.map(lambda leaf: leaf[place], states)

        return {
            "init": self._jit("init", self._start, laid),
            "update_alone": self._jit("update_alone", self._one, (laid, whole), donate_argnums=1),
            "many_alone": self._jit("many_alone", many, (laid, whole), donate_argnums=1),
            "evaluate": self._jit("evaluate", self._evaluate, whole),
            "predict": self._jit("predict", self._predict, whole),
            "stack": jax.jit(stack, out_shardings=NamedSharding(self._mesh, P(RUNS))),
            "part": jax.jit(part, out_shardings=laid),
        }

    def _stepping(self, size: int, alike: bool, many: bool) -> Any:
        """One step, or several, of so many runs; made once."""
        kind = (size, alike, many)
        if kind not in self._steppings:
            self._steppings[kind] = self._make_stepping(*kind)
        return self._steppings[kind]

    def _make_stepping(self, size: int, alike: bool, many: bool) -> Any:
        fed, runs = P() if alike else P(RUNS), P(RUNS)
        mapped = jax.vmap(self._one, in_axes=(0, 0, None, None if alike else 0))
        if self._mesh.size > 1:
            # Each device has its own runs, and nothing to tell the others.
            specs = {"in_specs": (runs, runs, P(), fed), "out_specs": (runs, runs)}
            mapped = jax.shard_map(mapped, mesh=self._mesh, check_vma=False, **specs)

        def step(numbers: Numbers, states: TrainState, data: Any, step_input: Any) -> Any:
            if not many:
                return mapped(numbers, states, data, step_input)
            return loop(
                lambda carry, step_input: mapped(numbers, carry, data, step_input),
                states,
                step_input,
            )

        name = "update_many" if many else "update"
        if name in self.traces:
            name = f"{name} of {size}"  # another step, not the same that was traced again
        out = (runs, P(None, RUNS) if many else runs)
        laid = tuple(NamedSharding(self._mesh, spec) for spec in out)
        return self._jit(name, step, laid, donate_argnums=1)


class Stack:
    """Runs that are stepped together.

    Args:
      states: of all, stacked along axis 0.
      step: gives the next states and the metrics; consumes the states.
      part: the state of the run at a place.
    """

    def __init__(
        self,
        states: TrainState,
        step: Callable[[TrainState, Sequence[Any]], tuple[TrainState, Packed]],
        part: Callable[[TrainState, int], TrainState],
    ) -> None:
        self._states, self._step, self._part = states, step, part

    def dispatch(self, fed: Sequence[Any]) -> Packed:
        """Gives the devices some steps in one call.

        Args:
          fed: for each step the feeds of the runs in order; one feed where they are fed alike.

        Returns:
          The runs' metrics, which may still be computed.
        """
        self._states, metrics = self._step(self._states, fed)
        return metrics

    def part(self, place: int) -> TrainState:
        """The state of one run, as it has it alone."""
        return self._part(self._states, place)


def structure(state: PyTree) -> Any:
    """What a state is made of: names, shapes and dtypes."""
    leaves, made = jax.tree.flatten(state)
    return made, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _column(values: Sequence[float]) -> jax.Array:
    """Numbers as an array that, as they do, takes on the type of what it meets."""
    return jnp.concatenate([jax.lax.full((1,), value) for value in values])
