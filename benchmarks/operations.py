"""Operations alone: `python -m benchmarks.operations`.

Times each operation of `jdl.ops`, forward and with gradients, beside its definition in plain JAX
and Flax at the sizes of the experiments: in a jitted function, without trainer or allocator.
`python -m benchmarks.convolutions` does so for convolutions, part by part.
"""

import json as json_lib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.__main__ import open_rows
from benchmarks.convolutions import interleave
from benchmarks.plain import DEFINITIONS
from benchmarks.worker import processor
from jdl import ops
from jdl.ops import onednn

Array = jax.Array


@dataclass(frozen=True)
class Operation:
    """An operation at a size of an experiment."""

    name: str  # in `jdl.ops` and in `DEFINITIONS`
    experiment: str
    shapes: tuple[tuple[int, ...], ...]  # of its arrays of floats
    arguments: Callable[..., tuple[Any, ...]] = lambda *arrays: arrays
    options: tuple[tuple[str, Any], ...] = ()

    def call(self, function: Callable[..., Any], *arrays: Array) -> Array:
        """The sum of its results, each with its own weight."""
        results = function(*self.arguments(*arrays), **dict(self.options))
        return sum(jnp.sum(x * jnp.cos(x)) for x in jax.tree.leaves(results))


def _dense(x: Array, kernel: Array) -> tuple[Any, ...]:
    return x, kernel, (((x.ndim - 1,), (0,)), ((), ()))


def _targets(hidden: Array, kernel: Array) -> tuple[Array, ...]:
    return hidden, kernel, jnp.arange(len(hidden)) % len(kernel)


def _pool(x: Array) -> tuple[Any, ...]:
    return x, (2, 2), (2, 2)


def _attention(name: str, batch: int, length: int, heads: int, width: int) -> Operation:
    shapes = ((batch, length, heads, width),) * 3
    return Operation("attention", name, shapes, options=(("causal", True),))


def _lstm(name: str, time: int, batch: int, units: int) -> Operation:
    state = (batch, units)
    return Operation("lstm", name, ((time, batch, 4 * units), state, state, (units, 4 * units)))


OPERATIONS = (
    _attention("shakespeare_char_gpt", 12, 64, 4, 32),
    _attention("stdlib_byte_gpt", 8, 256, 8, 64),
    Operation("dot_general", "shakespeare_char_gpt", ((12, 64, 128), (128, 512)), _dense),
    Operation("dot_general", "stdlib_byte_gpt", ((8, 256, 512), (512, 2048)), _dense),
    Operation("gru", "imdb_gru", ((200, 128, 384), (128, 128), (128, 384), (128,))),
    Operation("linear_cross_entropy", "shakespeare_char_gpt", ((768, 128), (65, 128)), _targets),
    Operation("linear_cross_entropy", "imdb_mlm", ((2048, 128), (8000, 128)), _targets),
    _lstm("imdb_lstm", 200, 128, 128),
    _lstm("airline_lstm", 12, 16, 4),
    Operation("max_pool", "cats_vs_dogs_cnn", ((32, 148, 148, 32),), _pool),
    Operation("max_pool", "mnist_cnn", ((128, 24, 24, 32),), _pool),
)


def measure(operation: Operation, seconds: float) -> dict[str, dict[str, float]]:
    """Returns the least milliseconds of jdl's and the plain form, forward and with gradients."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(0.1 * rng.normal(size=s), jnp.float32) for s in operation.shapes]
    forms = {"jdl": getattr(ops, operation.name), "plain": DEFINITIONS[operation.name]}
    every = tuple(range(len(arrays)))
    found = {}
    for what in ("forward", "gradients"):
        calls = {}
        for name, form in forms.items():

            def total(*arrays: Array, form: Any = form) -> Array:
                return operation.call(form, *arrays)

            function = total if what == "forward" else jax.grad(total, every)
            calls[name] = (jax.jit(function), arrays)
        found[what] = interleave(calls, seconds)
    return found


def main(json: Path | None = None, seconds: float = 0.5) -> None:
    """Prints the table.

    Args:
        json: a file for the rows, one JSON object a line.
        seconds: for each form of each operation.
    """
    file, machine = open_rows(json), processor()
    print(f"{machine}; jax {jax.__version__}, oneDNN {onednn.version()}; least milliseconds")
    for operation in OPERATIONS:
        shapes = ", ".join("x".join(map(str, shape)) for shape in operation.shapes)
        row = {"operation": operation.name, "experiment": operation.experiment, "shapes": shapes}
        for what, times in measure(operation, seconds).items():
            line = {**row, "what": what, "milliseconds": times, "machine": machine}
            print(json_lib.dumps(line), file=file, flush=True)
            ratio = times["plain"] / times["jdl"]
            print(
                f"{operation.name:22}{operation.experiment:22}{what:10} jdl {times['jdl']:8.2f}, "
                f"plain {times['plain']:8.2f}: {ratio:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.operations")
