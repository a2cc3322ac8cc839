"""How much of the bare compiled step's speed is left in the whole loop.

    python -m benchmarks.loop digits_mlp --steps 2000

The bare step is called on one batch that lies on the device; the loop also feeds, logs and counts.
Both run in turn, several times; the ratio of steps per second is given round by round.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import Positional

import jdl
from jdl.run import Run


def bare(run: Run, steps: int) -> float:
    """Steps per second of the compiled step alone, two of them in flight as in the loop."""
    state = run.compiled.init(jax.random.key(0))
    feed = jax.tree.map(jnp.asarray, run.compiled.put(next(run.feeds(0))))
    state, last = run.compiled.update(state, feed)
    jax.block_until_ready(state)
    begun = time.perf_counter()
    for _ in range(steps):
        state, metrics = run.compiled.update(state, feed)
        jax.block_until_ready(last)
        last = metrics
    jax.block_until_ready(state)
    return steps / (time.perf_counter() - begun)


def loop(experiment: jdl.Experiment, run: Run, steps: int) -> float:
    """Steps per second of `jdl.train`, without compiling, evaluating and saving."""
    with tempfile.TemporaryDirectory() as folder:
        trained = jdl.train(experiment, Path(folder) / "run", data=run.data)
    return trained.result["items_per_second"] / experiment.batch_size


def main(experiment: Positional[str], /, steps: int = 2000, rounds: int = 5) -> None:
    """Prints both speeds and their ratio for each round, and the median ratio."""
    chosen = dataclasses.replace(jdl.load(experiment).experiment, steps=steps, hooks=())
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(chosen, "bare", Path(folder))
        for _ in range(rounds):
            alone, whole = bare(run, steps), loop(chosen, run, steps)
            ratios.append(whole / alone)
            print(f"bare {alone:.0f} steps/s  loop {whole:.0f} steps/s  ratio {ratios[-1]:.3f}")
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{experiment}: median ratio {statistics.median(ratios):.3f} ({device})")


if __name__ == "__main__":
    tyro.cli(main)
