"""Finds a learning rate and a batch size by short trials.

A trial runs the experiment's own compiled steps, without hooks, and writes nothing.
"""

import dataclasses
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.metrics import compute
from jdl.optimizers import Optimizer, RangeTest
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.environment import peak_bytes
from jdl.trainer.training_run import TrainingRun

WORST = 4.0
"""A range test ends when the smoothed loss exceeds its minimum by this factor."""

ENOUGH = 0.95
"""Fraction of the best throughput at which a batch is large enough."""

BLOCKS, BLOCK_SECONDS, LONGEST_SECONDS = 3, 0.2, 2.0
"""Timed blocks per batch size, the minimum seconds of a block, and a soft limit for all blocks."""


@dataclass(frozen=True)
class LrCurve:
    """Learning rates and losses of a range test, step by step."""

    rates: np.ndarray  # geometrically spaced, (n,)
    losses: np.ndarray  # of each batch before its step, (n,)
    smoothed: np.ndarray  # exponential moving average of the losses, (n,)
    suggestion: float | None  # the rate at which the loss falls steepest; None if it never falls


def find_lr(
    experiment: Experiment, *, low: float = 1e-7, high: float = 10.0, steps: int = 100
) -> LrCurve:
    """Trains a few steps at rising learning rates: the range test of Smith (2017, §3.3).

    It ends early if the smoothed loss reaches four times its minimum, or a loss is not finite. The
    moving average spans a tenth of the test and lags behind, so the suggestion is not its steepest
    fall, as in fastai and Lightning, but the steepest line through the losses on both sides of a
    step (`steepest`), up to the minimum of the average.

    Args:
      experiment: to train; its own learning rate and schedule are ignored.
      low: the rate of the first step.
      high: the rate of the last step.
      steps: number of steps.

    Raises:
      UserError: the rates are no range, or the first loss is not finite.
    """
    if not 0 < low < high < math.inf:
        raise UserError(f"learning rates must rise from above 0, not from {low:g} to {high:g}")
    if steps < 10:
        raise UserError(f"a range test needs at least 10 steps, not {steps}")
    if not isinstance(experiment.optimizer, Optimizer):
        raise UserError(
            "the optimizer is an Optax transformation, whose learning rate is fixed: give the "
            "experiment an optimizer of jdl.optimizers, such as Adam()"
        )
    optimizer = dataclasses.replace(
        experiment.optimizer, learning_rate=high, schedule=RangeTest(start=low / high)
    )
    configure_allocator(experiment.runtime.malloc_arenas)
    run = _trial(experiment, optimizer=optimizer, steps=steps)
    losses, smoothed, total, keep = [], [], 0.0, 1 - 10 / steps
    for loss in itertools.islice(_losses(run), steps):
        losses.append(loss)
        total = keep * total + (1 - keep) * loss
        smoothed.append(total / (1 - keep ** len(losses)))
        if smoothed[-1] > min(smoothed) + (WORST - 1) * abs(min(smoothed)):
            break
    if not losses:
        raise UserError("the first step gives no finite loss at any learning rate: check the data")
    rates = np.asarray(optimizer.rate(steps)(np.arange(len(losses))), float)
    reach = steps // 10
    best = 2 * reach + int(np.argmin(smoothed[2 * reach :] or [0.0]))  # an earlier one is chance
    suggestion = steepest(rates[: best + 1], np.array(losses[: best + 1]), reach)
    return LrCurve(rates, np.array(losses), np.array(smoothed), suggestion)


def steepest(rates: np.ndarray, losses: np.ndarray, reach: int) -> float | None:
    """The rate at the step around which the loss falls steepest; None if it never falls.

    The slope is that of the least-squares line through the losses from `reach` steps before to
    `reach` steps after the step.
    """
    offsets = np.arange(-reach, reach + 1)
    if len(losses) < len(offsets):
        return None
    slopes = np.correlate(losses, offsets, "valid")  # up to a constant factor
    return float(rates[reach + slopes.argmin()]) if slopes.min() < 0 else None


@dataclass(frozen=True)
class BatchRow:
    """Throughput and memory of a batch size."""

    batch_size: int  # examples per step, over all devices
    items_per_second: float  # examples per second
    seconds: float  # of a step, the median over blocks of steps
    memory: int  # peak bytes of the fullest device; on CPU, of the process


@dataclass(frozen=True)
class BatchSearch:
    """Batch sizes tried, smallest first, and why the search ended."""

    rows: tuple[BatchRow, ...]
    ended: str

    @property
    def suggestion(self) -> int:
        """The smallest batch size that reaches 95 % of the best throughput."""
        best = max(row.items_per_second for row in self.rows)
        return next(r.batch_size for r in self.rows if r.items_per_second >= ENOUGH * best)


def find_batch(
    experiment: Experiment,
    *,
    largest: int = 4096,
    report: Callable[[BatchRow], Any] = lambda row: None,
) -> BatchSearch:
    """Trains a few steps with batch sizes that double, from one row per device and micro-batch.

    It ends when memory runs out, or on a CPU would run out; at the size of the training split; or
    at `largest`.

    Args:
      experiment: to train; its own batch size is ignored.
      largest: batch size to try.
      report: called with each row as soon as it is measured.

    Raises:
      UserError: even the smallest batch cannot be tried.
    """
    configure_allocator(experiment.runtime.malloc_arenas)
    data = Splits(experiment.data)
    rows: list[BatchRow] = []
    size = experiment.strategy.num_batch_shards() * experiment.num_microbatches
    while not (ended := _obstacle(rows, size, largest, data.count("train"))):
        try:
            rows.append(_measured(experiment, size, data))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            ended = f"memory runs out at a batch size of {size}"
            break
        report(rows[-1])
        size *= 2
    if not rows:
        raise UserError(f"there is no batch size to try: {ended}")
    return BatchSearch(tuple(rows), ended)


def _obstacle(rows: list[BatchRow], size: int, largest: int, examples: int) -> str:
    """Why a batch of this size is not tried; empty if it can be."""
    if size > largest:
        return f"the largest batch size to try is {largest}"
    if size > examples:
        return f"the training split has {examples} examples"
    if len(rows) > 1 and jax.default_backend() == "cpu":
        # On a host the kernel swaps, or kills this process, instead of raising an error.
        more, left = 2 * (rows[-1].memory - rows[-2].memory), available_memory()
        if more > left:
            return (
                f"a batch size of {size} would need {more / 2**20:.0f} MiB more, and "
                f"{left / 2**20:.0f} MiB are available"
            )
    return ""


def _measured(experiment: Experiment, size: int, data: Splits) -> BatchRow:
    """Compiles, warms up and times training steps."""
    run = _trial(experiment, data, batch_size=size)
    count = experiment.runtime.steps_per_execution
    step_inputs = run.step_inputs(0)

    def block(dispatches: int) -> float:
        begun, before = time.perf_counter(), None
        for _ in range(dispatches):
            metrics = run.update([next(step_inputs) for _ in range(count)])
            jax.block_until_ready(before)  # as in training, two are in flight at most
            before = metrics
        jax.block_until_ready(before)
        return time.perf_counter() - begun

    block(1)
    once = block(1)
    dispatches = math.ceil(BLOCK_SECONDS / once)
    blocks = [once] if dispatches == 1 else []
    while len(blocks) < BLOCKS and sum(blocks) < LONGEST_SECONDS:
        blocks.append(block(dispatches))
    seconds = statistics.median(blocks) / dispatches / count
    memory = peak_bytes(experiment.strategy.used())
    return BatchRow(size, size / seconds, seconds, memory)


def _trial(experiment: Experiment, data: Splits | None = None, **changes: Any) -> TrainingRun:
    """A run with an initial state, whose directory is never written."""
    changed = dataclasses.replace(experiment, hooks=(), **changes)
    run = TrainingRun(changed, "trial", Path(), data)
    run.state = run.compiled.init(jax.random.key(experiment.seed))
    return run


def _losses(run: TrainingRun) -> Iterator[float]:
    """Yields the loss of each step until one is not finite."""
    step_inputs = run.step_inputs(0)
    while True:
        (metrics,) = run.update([next(step_inputs)]).unpack()
        loss = compute(metrics).get("loss", math.nan)  # a skipped step has none
        if not math.isfinite(loss):
            return
        yield loss


def available_memory() -> int:
    """Available bytes of host memory; on Linux including the page cache."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
