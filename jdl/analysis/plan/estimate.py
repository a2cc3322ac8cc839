"""Estimates parameters, FLOPs, memory and time of a run, and the batch sizes that fit."""

import itertools
import math
import os
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jdl.analysis import flops
from jdl.analysis.plan.trial import Bytes, Trial
from jdl.analysis.plan.utilization import Kind, Share, measured
from jdl.config.overrides import snake
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.parallel import DataParallel, FullySharded, Single, Strategy, TensorParallel
from jdl.typing import PyTree

FILLED = 0.8
"""Fraction of a device's memory that an estimate may use to count as fitting."""

ROWS = (16, 32)
"""Rows of a micro-batch at which steps are traced; memory is linear in the rows."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A strategy, precision and remat for an experiment, and the memory they need."""

    strategy: str
    precision: str
    remat: bool
    bytes: int  # on one device, at the experiment's batch size
    largest: int  # batch size that fits, doubled from the smallest possible one; 0: none


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters, FLOPs, memory and time of a run."""

    modules: dict[str, int]  # number of parameters of each module of the model
    parameters: int  # of all modules
    flops: int | None  # of products and convolutions of a step, all devices; None: not countable
    batch_size: int  # examples per step, over all devices
    steps: int  # of the run
    devices: int  # number of devices
    memory: int  # bytes of each device
    rate: float  # FLOP/s of each device
    seconds: float | None  # of a step at that rate, a lower bound
    kind: Kind | None  # what most of a step's time is spent on
    share: Share | None  # of that rate, which steps of this kind were measured to reach
    machine: str | None  # where they were
    bytes: Bytes  # memory of a device under the experiment's own settings
    choices: tuple[Choice, ...]  # other settings
    notes: tuple[str, ...]  # why some settings are missing


def plan(
    experiment: Experiment,
    *,
    devices: int | None = None,
    memory: int | None = None,
    rate: float | None = None,
) -> Plan:
    """Estimates parameters, FLOPs, memory and time of a run.

    Steps are traced for the local platform; attention and convolutions of another platform may
    need more or less memory.

    Args:
      experiment: to train.
      devices: number of devices; None: those that the strategy uses here.
      memory: bytes of each device; None: those of a local device.
      rate: FLOP/s of each device; None: measured on a local device with a matrix product.

    Raises:
      UserError: the data is missing, or data, model, task and strategy do not fit together.
    """
    devices = len(experiment.strategy.used()) if devices is None else devices
    if devices < 1:
        raise UserError(f"a plan is for one device or more, not for {devices}")
    memory = device_memory() if memory is None else memory
    if memory <= 0 or (rate is not None and not 0 < rate < math.inf):
        raise UserError("memory and FLOP/s of a device must be positive")
    trial = Trial(experiment)
    own = trial.bytes(experiment.strategy, devices)
    state, _ = trial.traced(experiment.batch_size)
    choices, notes = _choices(trial, devices, memory)
    parts = math.prod(experiment.strategy.mesh_shape(devices)[:2])
    if experiment.batch_size % (parts * experiment.num_microbatches):
        notes.append(
            f"batch_size: {experiment.batch_size} examples cannot be divided evenly over "
            f"{parts} parts in {experiment.num_microbatches} micro-batches: it would not run"
        )
    rate = measured_rate(experiment.precision) if rate is None else rate
    count = kind = machine = share = None
    try:
        jaxpr = trial.traced(experiment.batch_size, "fp32")[1]
        count = flops.of(jaxpr)
        kind, machine, share = measured(jaxpr, count, rate)
    except ValueError as error:
        notes.append(str(error))
    return Plan(
        modules=_modules(state.params),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        flops=count,
        batch_size=experiment.batch_size,
        steps=trial.steps,
        devices=devices,
        memory=memory,
        rate=rate,
        seconds=None if count is None else count / devices / rate,
        kind=kind,
        share=share,
        machine=machine,
        bytes=own,
        choices=tuple(choices),
        notes=tuple(notes),
    )


def _choices(trial: Trial, devices: int, memory: int) -> tuple[list[Choice], list[str]]:
    """The memory of each strategy, precision and remat, and why some strategies are impossible."""
    model, found, notes = trial.experiment.model, [], []
    precisions = ("fp32", "bf16") if hasattr(model, "dtype") else ("fp32",)
    remats = (False, True) if hasattr(model, "remat") else (None,)
    for name, strategy in _strategies(devices).items():
        try:
            for precision, remat in itertools.product(precisions, remats):
                found.append(_choice(trial, name, strategy, devices, memory, precision, remat))
        except UserError as error:
            notes.append(f"{name}: {error}")
    return found, notes


def _strategies(devices: int) -> dict[str, Strategy]:
    """Strategies for this number of devices, by name; tensor parallelism over powers of two."""
    if devices == 1:
        return {"single": Single()}
    found: dict[str, Strategy] = {}
    for strategy in (DataParallel(), FullySharded()):
        found[snake(type(strategy).__name__)] = strategy
    parts = [2**power for power in range(1, devices.bit_length())]
    for tensor in (part for part in parts if devices % part == 0):
        found[f"tensor_parallel {tensor}"] = TensorParallel(tensor=tensor)
    return found


def _choice(
    trial: Trial,
    name: str,
    strategy: Strategy,
    devices: int,
    memory: int,
    precision: str,
    remat: bool | None,
) -> Choice:
    each = trial.experiment.num_microbatches
    first, second = (
        trial.bytes(strategy, devices, rows * each, precision, remat).total for rows in ROWS
    )
    slope = (second - first) / (ROWS[1] - ROWS[0]) / each

    def total(rows: int) -> int:
        return round(first + slope * (rows - ROWS[0] * each))

    largest, rows = 0, each
    parts = math.prod(strategy.mesh_shape(devices)[:2])
    while total(rows) <= FILLED * memory and (rows * parts <= trial.examples or not largest):
        largest, rows = rows * parts, 2 * rows
    own = total(trial.rows(strategy, devices, trial.experiment.batch_size))
    return Choice(strategy=name, precision=precision, remat=bool(remat), bytes=own, largest=largest)


def _modules(params: PyTree) -> dict[str, int]:
    """Number of parameters of each module; block_10 comes after block_9."""
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in params.items()
    }

    def key(name: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return {name: counts[name] for name in sorted(counts, key=key)}


def device_memory() -> int:
    """Bytes of a local device; virtual CPU devices share the host's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit") or host // jax.local_device_count()


def measured_rate(precision: str) -> float:
    """FLOP/s of a large matrix product on a local device, the best of five."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    a = jnp.ones((side, side), dtype)
    product, taken = jax.jit(jnp.matmul), []
    jax.block_until_ready(product(a, a))
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(product(a, a))
        taken.append(time.perf_counter() - begun)
    return 2 * side**3 / min(taken)
