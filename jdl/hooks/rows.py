"""Writes the training rows of `metrics.jsonl`, in every run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jdl.errors import UserError
from jdl.hooks.base import Callback
from jdl.metrics import Metrics, compute, scalars
from jdl.typing import Event, Json, RunContext


class Rows(Callback):
    """Writes the mean of every `log_every` steps, and stops the run after many skipped steps.

    Attributes:
      epoch_sums: arrays of each metric, such as [total, count], summed over this epoch so far.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._sums: dict[str, list[Json]] = {}
        self._missing: set[str] = set()
        self._warned: set[str] = set()
        self._epoch = self._next_epoch = 0
        self.epoch_sums: dict[str, list[Json]] = {}
        self._skipped = 0
        self._last: tuple[int, float] | None = None

    def __call__(self, event: Event) -> None:
        """Adds the step's metrics to the sums, and writes a row every `log_every` steps."""
        if event.metrics["skipped"].total:
            self._skip(event)
        else:
            self._skipped = 0
        if self._next_epoch != self._epoch:
            self._epoch, self.epoch_sums = self._next_epoch, {}
        self._next_epoch = int(event.epoch)  # a step belongs to the epoch in which it begins
        missing = set()
        for name, metric in event.metrics.items():
            leaves = jax.tree.leaves(metric)
            finite = [
                math.isfinite(leaf) if isinstance(leaf, float) else np.isfinite(leaf).all()
                for leaf in leaves
            ]
            if not all(finite):
                missing.add(name)
                leaves = [np.zeros(np.shape(leaf)) for leaf in leaves]
            for sums in (self._sums, self.epoch_sums):
                before = sums.get(name, [0.0] * len(leaves))
                sums[name] = [
                    a + b if isinstance(b, float) else np.add(a, b).tolist()
                    for a, b in zip(before, leaves, strict=True)
                ]
        if missing:
            self._missing |= missing
            self._warn(missing, event.step)
        if self._last is None:
            self._last = (event.step, event.timing["training_seconds"])
        log_every = self._run.experiment.runtime.log_every
        if event.step % log_every == 0 or event.step == self._run.steps:
            self._write_means(event)

    def state(self) -> Json:
        """Returns the sums since the last row and of the current epoch, lists of arrays by name."""
        return {
            "sums": dict(self._sums),
            "missing": sorted(self._missing),
            "skipped": self._skipped,
            "epoch": [self._epoch, self._next_epoch, dict(self.epoch_sums)],
        }

    def restore(self, state: Json) -> None:
        """Restores the sums."""
        self._sums, self._skipped = dict(state["sums"]), state["skipped"]
        self._missing = set(state["missing"])
        self._epoch, self._next_epoch, self.epoch_sums = state["epoch"]

    def _write_means(self, event: Event) -> None:
        """Writes the means since the last row; NaN for metrics of which no step was finite."""
        missing = {name: math.nan for name in event.metrics if name in self._missing}
        scores = {**missing, **compute_row(with_sums(event.metrics, self._sums))}
        self._sums, self._missing = {}, set()
        self._write(event, "train", scores, self._speed(event))

    def _speed(self, event: Event) -> dict[str, float]:
        """Computes rates since the last row, without compilation, evaluation and saving."""
        step, seconds = self._last or (0, 0.0)
        self._last = (event.step, event.timing["training_seconds"])
        spent = event.timing["training_seconds"] - seconds
        if event.step == step or spent <= 0:
            return dict(event.timing)
        rate = (event.step - step) / spent
        items = rate * self._run.experiment.batch_size
        return {**event.timing, "steps_per_second": rate, "items_per_second": items}

    def _warn(self, missing: set[str], step: int) -> None:
        for name in sorted(missing - self._warned):
            self._run.print(
                f"the metric {name} is not finite at step {step}: such steps are left out of its "
                f"mean over training steps (this is printed once)"
            )
        self._warned |= missing

    def _skip(self, event: Event) -> None:
        """Writes which positions a skipped batch had; raises after too many in a row."""
        self._skipped += 1
        size, limit = self._run.experiment.batch_size, self._run.experiment.stop_after_skipped
        first = (event.step - 1) * size
        where = {"first_position": first, "last_position": first + size - 1}
        self._write(event, "skipped", where, dict(event.timing))
        if self._skipped >= limit:
            raise UserError(
                f"loss or gradient was not finite for {limit} steps in a row, up to step "
                f"{event.step}: the run stops (a smaller learning rate or clipping may help; "
                f"its checkpoints are intact)"
            )

    def _write(self, event: Event, split: str, metrics: Json, timing: dict[str, Any]) -> None:
        self._run.log(
            {
                "step": event.step,
                "epoch": event.epoch,
                "split": split,
                "metrics": metrics,
                "timing": timing,
            }
        )


def with_sums(metrics: Metrics, sums: Mapping[str, Sequence[Json]]) -> Metrics:
    """Returns metrics of the same classes with the arrays in `sums`, lists by name."""
    return {
        name: jax.tree.unflatten(
            jax.tree.structure(metrics[name]),
            [np.asarray(x) if isinstance(x, list) else x for x in arrays],
        )
        for name, arrays in sums.items()
    }


def compute_row(metrics: Metrics) -> dict[str, float]:
    """Computes metrics summed over steps; omits `skipped` if no step was."""
    found = scalars(compute(metrics))
    return {name: value for name, value in found.items() if name != "skipped" or value}
