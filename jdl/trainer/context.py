"""What hooks see of the run that they serve, and what they ask of its loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jdl.experiment import Experiment
from jdl.files import MetricsLog
from jdl.trainer.run import Run
from jdl.typing import Json


class LoopContext:
    """The `RunContext` of a training loop.

    Args:
      run: the run that is trained.

    Attributes:
      steps_submitted: last step given to the devices, one or more ahead of a late event.
      save_requested: whether a hook asked for a checkpoint at this event.
      stop_reason: why a hook ends the run; empty while it does not.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._log: MetricsLog | None = None
        self._listeners: Sequence[Any] = ()
        self.steps_submitted = 0
        self.save_requested = False
        self.stop_reason = ""

    @property
    def experiment(self) -> Experiment:
        """See `RunContext`."""
        return self._run.experiment

    @property
    def workdir(self) -> Path:
        """See `RunContext`."""
        return self._run.workdir

    @property
    def steps(self) -> int:
        """See `RunContext`."""
        return self._run.steps

    @property
    def steps_per_epoch(self) -> int:
        """See `RunContext`."""
        return self._run.steps_per_epoch

    @property
    def splits(self) -> tuple[str, ...]:
        """See `RunContext`."""
        return self._run.splits

    @property
    def traces(self) -> Mapping[str, int]:
        """See `RunContext`."""
        return self._run.traces

    def evaluate(self, split: str, state: Any = None) -> dict[str, float]:
        """See `RunContext`."""
        return self._run.evaluate(split, state)

    def higher_is_better(self, metric: str) -> bool | None:
        """See `RunContext`."""
        return self._run.higher_is_better(metric)

    def print(self, text: str) -> None:
        """See `RunContext`."""
        self._run.print(text)

    def log(self, row: Mapping[str, Json]) -> None:
        """See `RunContext`."""
        if self._log is not None:
            self._log.append(row)
        for listener in self._listeners:
            listener.row(row)

    def save(self) -> None:
        """See `RunContext`."""
        self.save_requested = True

    def stop(self, reason: str) -> None:
        """See `RunContext`."""
        self.stop_reason = self.stop_reason or reason

    def attach(self, log: MetricsLog | None, listeners: Sequence[Any]) -> None:
        """Sets the file and the listeners that receive rows; without a file rows are not written.

        With several processes, only the first has a file.
        """
        self._log, self._listeners = log, listeners

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        if self._log is not None:
            self._log.sync()
