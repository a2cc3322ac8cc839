"""Hooks that display or record a run without changing it."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jdl.errors import UserError, install_command
from jdl.hooks.base import Callback, Hook
from jdl.metrics import without_duplicates
from jdl.typing import Event, RunContext


@dataclass(frozen=True, kw_only=True)
class Progress(Hook):
    """Shows progress: a live bar in a terminal, a line per row elsewhere."""

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        if jax.process_index() != 0:
            return Callback()
        return _Progress(run) if sys.stdout.isatty() else _Lines(run)


class _Lines(Callback):
    def __init__(self, run: RunContext) -> None:
        self._run = run

    def row(self, row: Mapping[str, Any]) -> None:
        self._run.print(line(row, self._run.steps))


class _Progress(Callback):
    def __init__(self, run: RunContext) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._steps = run.steps
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._task = self._bar.add_task("compiling", total=run.steps)
        self._scores: dict[str, str] = {}

    def begin(self) -> None:
        self._bar.start()

    def __call__(self, event: Event) -> None:
        self._bar.update(self._task, completed=event.step)

    def row(self, row: Mapping[str, Any]) -> None:
        self._scores[row["split"]] = line(row, self._steps).split("  ", 1)[1]
        self._bar.update(self._task, description="  ".join(self._scores.values()))

    def close(self) -> None:
        self._bar.stop()


def line(row: Mapping[str, Any], steps: int) -> str:
    """Formats a row of `metrics.jsonl`: step, metrics, speed, time left and compile time."""
    timing = row["timing"]
    metrics = without_duplicates(row["metrics"])
    scores = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    text = f"step {row['step']}/{steps}  {row['split']} {scores}"
    if row["split"] == "train" and "steps_per_second" in timing:
        # From the mean over all steps: those since the last row may have waited for other programs.
        left = (steps - row["step"]) / row["step"] * timing["training_seconds"]
        text += (
            f"  {timing['steps_per_second']:.0f} steps/s {timing['items_per_second']:.0f} items/s"
            f"  {left:.0f} s left (compiled in {timing['compile_seconds']:.1f} s)"
        )
    return text


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Hook):
    """Writes every row as TensorBoard scalars into the run directory."""

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        return _TensorBoard(run) if jax.process_index() == 0 else Callback()


class _TensorBoard(Callback):
    def __init__(self, run: RunContext) -> None:
        self._run, self._writer = run, None

    def row(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._run.workdir), purge_step=row["step"])
        for name, value in row["metrics"].items():
            self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True, kw_only=True)
class WandB(Hook):
    """Sends every row to Weights & Biases (extra `wandb`)."""

    project: str = "jdl"  # project name on the server

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`.

        Raises:
          UserError: the package is missing.
        """
        if importlib.util.find_spec("wandb") is None:
            raise UserError(f"the hook WandB needs an extra: {install_command('wandb')}")
        return _WandB(run, self.project) if jax.process_index() == 0 else Callback()


class _WandB(Callback):
    def __init__(self, run: RunContext, project: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = run.workdir.name
        self._run = wandb.init(project=project, id=name, resume="allow", dir=str(run.workdir))

    def row(self, row: Mapping[str, Any]) -> None:
        scores = {f"{row['split']}/{name}": value for name, value in row["metrics"].items()}
        self._run.log(scores, step=row["step"])

    def close(self) -> None:
        self._run.finish()


@dataclass(frozen=True, kw_only=True)
class Profile(Hook):
    """Traces some steps with `jax.profiler` into `RUN/profile`, for TensorBoard or Perfetto."""

    start: int = 10  # first traced step
    steps: int = 5  # number of traced steps

    def __post_init__(self) -> None:
        if self.start < 1 or self.steps < 1:
            raise UserError(f"Profile needs start, steps >= 1, not {self.start}, {self.steps}")

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        return _Profile(run, self)


class _Profile(Callback):
    def __init__(self, run: RunContext, config: Profile) -> None:
        self._run, self._config, self._tracing = run, config, False

    def begin(self) -> None:
        if self._config.start == 1:
            self._start()

    def due(self, step: int) -> bool:
        # The loop waits for the state of these steps, so that the trace holds whole steps.
        return step + 1 == self._config.start or step + 1 == self._config.start + self._config.steps

    def __call__(self, event: Event) -> None:
        if event.step + 1 == self._config.start:
            self._start()
        elif self.due(event.step):
            self.close()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Tracing Python can keep CPython from starting Orbax's writer threads.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(self._run.workdir / "profile"), profiler_options=options)
        self._tracing = True

    def close(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


@dataclass(frozen=True, kw_only=True)
class RetraceWarning(Hook):
    """Warns when the training step is compiled again, which costs far more than a step.

    The usual cause is two batches whose arrays differ in shape. Expected is one compilation for
    each boundary of `data.buckets`, and one for whole batches.
    """

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        return _RetraceWarning(run)


class _RetraceWarning(Callback):
    def __init__(self, run: RunContext) -> None:
        buckets = run.experiment.data.buckets
        self._run, self._seen = run, 1 + (len(buckets.boundaries) if buckets else 0)

    def __call__(self, event: Event) -> None:
        traces = self._run.traces.get("update", 0)
        if traces > self._seen:
            self._seen = traces
            self._run.print(
                f"the training step was compiled again for step {self._run.steps_submitted} "
                f"({traces} times so far): the arrays of its batch have other shapes than before"
            )
