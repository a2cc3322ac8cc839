"""Overhead of the training loop over the bare compiled step.

    python -m benchmarks.loop digits_mlp --steps 2000

The bare step is called on one batch in device memory; the pipeline alone makes batches and
lays them on the device; the loop does both, logs and counts. All run in turn, several times; the
ratio of the loop's steps per second to the bare step's is given round by round.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import Positional

import jdl
from benchmarks.ours import Clock
from jdl.errors import UserError
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.training_run import TrainingRun


def bare(run: TrainingRun, steps: int, count: int) -> float:
    """Steps per second of the compiled step alone, submitted as in the loop: `count` at once."""
    step_inputs = run.step_inputs(0)
    if count == 1:
        step_input, step = run.compiled.put(next(step_inputs)), run.compiled.update
    else:
        stacked = jax.tree.map(
            lambda *each: np.stack(each), *[next(step_inputs) for _ in range(count)]
        )
        step_input, step = run.compiled.put_many(stacked), run.compiled.update_many
    step_input = jax.tree.map(jnp.asarray, step_input)
    state, last = step(run.compiled.init(jax.random.key(0)), step_input)
    jax.block_until_ready(state)
    begun = time.perf_counter()
    for _ in range(steps // count):
        state, metrics = step(state, step_input)
        jax.block_until_ready(last)
        last = metrics
    jax.block_until_ready(state)
    return steps // count * count / (time.perf_counter() - begun)


def pipeline(run: TrainingRun, steps: int) -> float:
    """Batches per second that are made and copied to the device, without any step."""
    step_inputs = run.step_inputs(0)
    jax.block_until_ready(run.compiled.put(next(step_inputs)))
    begun = time.perf_counter()
    for _ in range(steps):
        last = run.compiled.put(next(step_inputs))
    jax.block_until_ready(last)
    return steps / (time.perf_counter() - begun)


def loop(experiment: jdl.Experiment, run: TrainingRun, steps: int) -> float:
    """Steps per second of `jdl.train`, without compiling, evaluating and saving."""
    clock = Clock(after=4 * experiment.runtime.steps_per_execution)
    timed = dataclasses.replace(experiment, steps=clock.after + steps, hooks=(clock,))
    with tempfile.TemporaryDirectory() as folder:
        jdl.train(timed, Path(folder) / "run", data=run.data)
    return steps / (clock.readings[-1] - clock.readings[0])


def main(experiment: Positional[str], /, steps: int = 2000, rounds: int = 5) -> None:
    """Prints all speeds and the loop's ratio for each round, and the median ratio."""
    chosen = jdl.load(experiment).experiment
    configure_allocator(chosen.runtime.malloc_arenas)
    count = chosen.runtime.steps_per_execution
    steps = -(-steps // count) * count
    chosen = dataclasses.replace(chosen, steps=steps, hooks=())
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(chosen, "bare", Path(folder))
        for _ in range(rounds):
            alone, fed = bare(run, steps, count), pipeline(run, steps)
            whole = loop(chosen, run, steps)
            ratios.append(whole / alone)
            print(
                f"bare {alone:.0f} steps/s  pipeline {fed:.0f} batches/s  loop {whole:.0f} steps/s"
                f"  loop over bare {ratios[-1]:.3f}",
                flush=True,
            )
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{experiment}: median ratio {statistics.median(ratios):.3f} ({device})")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.loop")
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
    except ModuleNotFoundError as missing:  # what reads the experiment's data
        sys.exit(f"benchmarks: skipped, since {missing.name} is not installed")
