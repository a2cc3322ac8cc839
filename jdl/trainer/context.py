"""The interface through which hooks see a run and make requests to its loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jdl.files import MetricsLog
from jdl.trainer.run import Run
from jdl.typing import Json


class LoopContext:
    """The `RunContext` of a training loop.

    Args:
      run: the run that is trained.

    Attributes:
      steps_submitted: last step given to the devices, one or more ahead of a late event.
      rows: file that rows are written to; None before and after training, and where another
        process writes it.
      save_requested: whether a hook requested a checkpoint at this event.
      save_in_background: whether the loop trains on while it is written.
      stop_reason: why a hook ends the run; empty if none does.
    """

    def __init__(self, run: Run) -> None:
        self.experiment, self.workdir = run.experiment, run.workdir
        self.steps, self.steps_per_epoch, self.splits = run.steps, run.steps_per_epoch, run.splits
        self.evaluate, self.print, self.traces = run.evaluate, run.print, run.traces
        self.higher_is_better = run.higher_is_better
        self.rows: MetricsLog | None = None
        self._callbacks: Sequence[Any] = ()
        self.steps_submitted = 0
        self.save_requested = False
        # On CPUs, writing would take the cores from training.
        self.save_in_background = jax.default_backend() != "cpu"
        self.stop_reason = ""

    def log(self, row: Mapping[str, Json]) -> None:
        """See `RunContext`."""
        if self.rows is not None:
            self.rows.append(row)
        for callback in self._callbacks:
            callback.row(row)

    def save(self, background: bool | None = None) -> None:
        """See `RunContext`."""
        self.save_requested = True
        if background is not None:
            self.save_in_background = background

    def stop(self, reason: str) -> None:
        """See `RunContext`."""
        self.stop_reason = self.stop_reason or reason

    def attach(self, rows: MetricsLog | None, callbacks: Sequence[Any]) -> None:
        """Sets the file and the callbacks that receive rows."""
        self.rows, self._callbacks = rows, callbacks
