"""What a run will need, predicted from shapes: nothing is compiled."""

import dataclasses
import functools
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jdl import flops, step
from jdl.data.pipeline import is_resident, transformed
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.memory import nbytes, peak
from jdl.overrides import snake
from jdl.parallel import DataParallel, FullySharded, Single, Strategy, TensorParallel
from jdl.parallel.base import AXES
from jdl.run import fitting
from jdl.state import TrainState
from jdl.step import Program
from jdl.typing import PyTree

FILLED = 0.8
"""Share of a device's memory that a prediction may fill to count as fitting."""

UTILISATION = 0.4
"""Share of a device's peak that large, well tuned models reach (Chowdhery et al., 2022)."""

ROWS = (16, 32)
"""Rows of a micro-batch at which steps are traced; what they hold at others lies on a line."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What lies on one device at the peak of a step, in bytes."""

    parameters: int
    optimizer: int  # moments, averages, and the model's further collections
    gradients: int
    activations: int  # all else that a step holds, saved for the backward pass or in passing
    data: int  # the batch, and the training split where it is resident

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way of running an experiment."""

    strategy: str
    precision: str
    remat: bool
    bytes: int  # on one device, at the experiment's batch size
    largest: int  # batch size that fits, doubled from the least possible one; 0: none


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs.

    Attributes:
      modules: parameters of each part of the model, by name.
      parameters: of all parts.
      flops: operations of the products and convolutions of a step, on all devices together; None
        where they cannot be counted.
      batch_size: examples a step, over all devices.
      steps: of the run.
      devices: how many.
      memory: bytes of each.
      rate: operations a second that each can do.
      seconds: of a step at that rate: no step takes less.
      bytes: what lies on a device, as the experiment is.
      choices: other ways to run it.
      notes: why there are not more of them.
    """

    modules: dict[str, int]
    parameters: int
    flops: int | None
    batch_size: int
    steps: int
    devices: int
    memory: int
    rate: float
    seconds: float | None
    bytes: Bytes
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def plan(
    experiment: Experiment,
    *,
    devices: int | None = None,
    memory: int | None = None,
    rate: float | None = None,
) -> Plan:
    """Predicts parameters, operations, memory and time of a run.

    Steps are traced for the platform at hand; attention and convolutions of another may hold more
    or less.

    Args:
      experiment: what is to be trained.
      devices: how many there will be; None: as many as its strategy uses here.
      memory: bytes of each; None: those of a device here.
      rate: operations a second of each; None: those of a matrix product here, which is measured.

    Raises:
      UserError: the data is not at hand, or data, model, task and strategy do not fit together.
    """
    devices = len(experiment.strategy.used()) if devices is None else devices
    if devices < 1:
        raise UserError(f"a plan is for one device or more, not for {devices}")
    memory = device_memory() if memory is None else memory
    if memory <= 0 or (rate is not None and not 0 < rate < math.inf):
        raise UserError("memory and operations a second of a device must be positive")
    trial = Trial(experiment)
    lying = trial.bytes(experiment.strategy, devices)
    state, _ = trial.traced(experiment.batch_size)
    choices, notes = _choices(trial, devices, memory)
    try:
        count = flops.of(trial.traced(experiment.batch_size, "fp32")[1])
    except ValueError as error:
        count, notes = None, [*notes, str(error)]
    rate = measured_rate(experiment.precision) if rate is None else rate
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
        bytes=lying,
        choices=tuple(choices),
        notes=tuple(notes),
    )


class Trial:
    """An experiment whose step is traced under several settings, under each once.

    Raises:
      UserError: its data is not at hand.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        source = experiment.data.splits()["train"]
        self.examples = len(source)
        self.steps = experiment.total_steps(self.examples)
        self.example = transformed(experiment.data, source[0])
        self.row = sum(array.nbytes for array in self.example.values())
        whole = self.row * self.examples
        self.resident = whole if is_resident(experiment.data, whole) else 0
        self._known: dict[Any, tuple[TrainState, Any]] = {}

    def traced(
        self, rows: int, precision: str | None = None, remat: bool | None = None
    ) -> tuple[TrainState, Any]:
        """The shapes of a state, and a step on so many rows as a jaxpr."""
        own = self.experiment
        remat = getattr(own.model, "remat", None) if remat is None else remat
        key = rows, precision or own.precision, remat
        if key not in self._known:
            self._known[key] = self._trace(*key)
        return self._known[key]

    def _trace(self, rows: int, precision: Any, remat: bool | None) -> tuple[TrainState, Any]:
        experiment = self.experiment
        model = experiment.model if remat is None else experiment.model.clone(remat=remat)
        changed = dataclasses.replace(experiment, model=model, precision=precision)
        program = Program(
            changed.compute_model(),
            experiment.task,
            experiment.optimizer.build(self.steps),
            experiment.data.device_transforms,
            experiment.accumulate,
        )
        batch = {
            name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype)
            for name, array in self.example.items()
        }
        batch["mask"] = jax.ShapeDtypeStruct((rows,), bool)
        with fitting({name: array.shape for name, array in self.example.items()}):
            state = jax.eval_shape(functools.partial(step.init, program), jax.random.key(0), batch)
            return state, jax.make_jaxpr(functools.partial(step.update, program))(state, batch)

    def rows(self, strategy: Strategy, devices: int, batch_size: int) -> int:
        """Rows of a batch that a device computes, rounded up to whole micro-batches."""
        data, fsdp, _ = strategy.sizes(devices)
        each = self.experiment.accumulate
        return math.ceil(batch_size / (data * fsdp * each)) * each

    def bytes(
        self,
        strategy: Strategy,
        devices: int,
        rows: int | None = None,
        precision: str | None = None,
        remat: bool | None = None,
    ) -> Bytes:
        """What lies on one device; where nothing else is said, as the experiment is.

        Raises:
          UserError: the strategy cannot run it.
        """
        sizes = strategy.sizes(devices)
        rows = rows or self.rows(strategy, devices, self.experiment.batch_size)
        state, jaxpr = self.traced(rows, precision, remat)
        laid = strategy.layout(state, AbstractMesh(sizes, AXES))
        dims = [_dimension(where.spec, "tensor") for where in jax.tree.leaves(laid)]
        # Products need parameters and make gradients that are split over `tensor` alone: what is
        # spread over `fsdp` is gathered before them, and scattered after.
        products = sum(
            nbytes(leaf) // (1 if _dimension(where.spec, "tensor") is None else sizes[2])
            for leaf, where in zip(*map(jax.tree.leaves, (state.params, laid.params)), strict=True)
        )
        parameters = _lying(state.params, laid.params)
        gathered = 2 * (products - parameters)
        return Bytes(
            parameters=parameters,
            optimizer=_lying(state.opt_state, laid.opt_state)
            + _lying(state.collections, laid.collections),
            gradients=parameters,
            activations=max(peak(jaxpr, dims, sizes[2]) - products, 0) + gathered,
            data=rows * self.row + self.resident,
        )


def _choices(trial: Trial, devices: int, memory: int) -> tuple[list[Choice], list[str]]:
    """What each strategy, precision and remat takes, and why some strategies cannot be taken."""
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
    """Those of so many devices, by name; kernels are split among any power of two of them."""
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
    each = trial.experiment.accumulate
    first, second = (
        trial.bytes(strategy, devices, rows * each, precision, remat).total for rows in ROWS
    )
    slope = (second - first) / (ROWS[1] - ROWS[0]) / each

    def total(rows: int) -> int:
        return round(first + slope * (rows - ROWS[0] * each))

    largest, rows = 0, each
    parts = math.prod(strategy.sizes(devices)[:2])
    while total(rows) <= FILLED * memory and (rows * parts <= trial.examples or not largest):
        largest, rows = rows * parts, 2 * rows
    own = total(trial.rows(strategy, devices, trial.experiment.batch_size))
    return Choice(strategy=name, precision=precision, remat=bool(remat), bytes=own, largest=largest)


def _dimension(spec: Any, axis: str) -> int | None:
    """The dimension of a leaf that is split over an axis of the mesh."""
    return list(spec).index(axis) if axis in spec else None


def _lying(tree: PyTree, laid: PyTree) -> int:
    """Bytes of a tree's leaves on one device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(laid), strict=True)
    return sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in pairs
    )


def _modules(params: PyTree) -> dict[str, int]:
    """Parameters of each part of a model, in the order of their numbers."""
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in params.items()
    }

    def key(name: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return {name: counts[name] for name in sorted(counts, key=key)}


def device_memory() -> int:
    """Bytes of a device here; devices that are the host's share its memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit") or host // jax.local_device_count()


def measured_rate(precision: str) -> float:
    """Operations a second of a large matrix product on a device here, the best of a few."""
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


def parse_bytes(text: str) -> int:
    """`80GB`, `16GiB` or a plain number as bytes.

    Raises:
      UserError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b?)", text.strip().lower())
    if found is None or not float(found[1]):
        raise UserError(f"{text!r} is no amount of memory: write 80GB, 16GiB or a number of bytes")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def lines(found: Plan) -> Iterator[str]:
    """A plan as text."""
    yield "parameters"
    for name, count in _grouped(found.modules):
        yield f"  {name:<24} {count:>15,}"
    yield f"  {'in all':<24} {found.parameters:>15,}"
    yield ""
    yield f"on each of {found.devices} devices, with batches of {found.batch_size}, at the peak"
    for field in dataclasses.fields(found.bytes):
        yield f"  {field.name:<24} {_amount(getattr(found.bytes, field.name)):>15}"
    yield f"  {'in all':<24} {_amount(found.bytes.total):>15} of {_amount(found.memory)}"
    yield ""
    yield from _times(found)
    yield ""
    yield f"the largest batch that fits in {FILLED:.0%} of that memory, and what "
    yield f"one of {found.batch_size} takes"
    settings = list(dict.fromkeys((c.precision, c.remat) for c in found.choices))
    heads = [precision + (", remat" if remat else "") for precision, remat in settings]
    yield f"  {'':<20}" + "".join(f"{head:>22}" for head in heads)
    for name in dict.fromkeys(choice.strategy for choice in found.choices):
        cells = [
            f"{choice.largest or 'none':>8} {'(' + _amount(choice.bytes) + ')':>13}"
            for choice in found.choices
            if choice.strategy == name
        ]
        yield f"  {name:<20}" + "".join(cells)
    for note in found.notes:
        yield f"  {note}"
    if jax.default_backend() == "cpu" and any(choice.remat for choice in found.choices):
        yield "XLA undoes remat on CPUs: what it saves is predicted for accelerators"


def _times(found: Plan) -> Iterator[str]:
    """What a step and a run take at least."""
    if found.flops is None or found.seconds is None:
        return
    whole = found.seconds * found.steps
    yield f"a step has {found.flops:.4g} operations, and a device does {found.rate:.3g} a second"
    yield f"  {'at 100 %, the bound':<24} {found.seconds:.3g} s a step, {whole:.4g} s a run"
    likely = f"at {UTILISATION:.0%} of it".replace("%", " %")
    yield (
        f"  {likely:<24} {found.seconds / UTILISATION:.3g} s a step, "
        f"{whole / UTILISATION:.4g} s a run of {found.steps:,} steps"
    )


def _grouped(modules: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Neighbours of one kind and size, such as blocks, as one line."""

    def kind(item: tuple[str, int]) -> tuple[str, int]:
        return re.sub(r"\d+$", "", item[0]), item[1]

    for _, group in itertools.groupby(modules.items(), kind):
        names = list(group)
        (first, count), (last, _) = names[0], names[-1]
        label = first if len(names) == 1 else f"{first} .. {last.rpartition('_')[2]}"
        yield label, count * len(names)


def _amount(count: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(max(int(math.log2(count or 1)) // 10, 0), 4)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
