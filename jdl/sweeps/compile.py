"""Compiles experiments that differ only in seeds and numbers into one vmapped step."""

import traceback
from collections.abc import Sequence
from pathlib import Path

import jax

from jdl.config.overrides import flatten, snake
from jdl.data.pipeline import InMemory
from jdl.errors import UserError, first_line
from jdl.experiment import Experiment
from jdl.parallel import Strategy
from jdl.step import Program
from jdl.sweeps.substitute import with_values
from jdl.sweeps.vectorized import Numbers, VectorizedSteps
from jdl.trainer.run import Run


def compile_vectorized(probe: Run, experiments: Sequence[Experiment]) -> VectorizedSteps:
    """Returns the vectorized steps of experiments of one architecture.

    Args:
      probe: a run of the first of them.
      experiments: they differ only in the seed and in numbers.

    Raises:
      UserError: names what cannot be vectorized, and why.
    """
    first = experiments[0]
    if type(first.strategy).compile is not Strategy.compile:
        name = snake(type(first.strategy).__name__)
        raise UserError(f"the strategy {name} cannot be vectorized: choose another, or single")
    if jax.process_count() > 1:
        raise UserError("runs of several processes cannot be vectorized")
    if first.data.buckets:
        raise UserError("data.buckets cuts the batches of each run to another length")
    fields = [flatten(experiment) for experiment in experiments]
    paths = [
        path
        for path, value in fields[0].items()
        if path != "seed" and any(each[path] != value for each in fields)
    ]
    shared = len({experiment.seed for experiment in experiments}) == 1
    pipeline = probe.pipeline("train")
    in_memory = pipeline.arrays if isinstance(pipeline, InMemory) else {}
    step_input = pipeline.step_input(0, first.batch_size, first.seed, probe.shard)

    def program(numbers: Numbers) -> Program:
        return with_values(first, numbers).program(probe.steps)

    def compiled(paths: Sequence[str]) -> VectorizedSteps:
        numbers = [{path: each[path] for path in paths} for each in fields]
        steps = VectorizedSteps(first.strategy, program, numbers, shared, in_memory, step_input)
        steps.check(probe.program)
        return steps

    try:
        return compiled(paths)
    except Exception as error:
        for path in paths:  # tried one by one, to name the one that fails
            try:
                compiled([path])
            except Exception as cause:
                raise UserError(f"{path} cannot be vectorized: {_reason(cause)}") from cause
        raise UserError(f"the step cannot be vectorized: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Returns an error's message, with its place in code outside of JAX."""
    inside = str(Path(jax.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if not frame.filename.startswith(inside)][-1]
    return f"{first_line(error)} ({Path(frame.filename).name}, line {frame.lineno})"
