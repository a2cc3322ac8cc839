"""Base classes: a hook is the frozen configuration, its callback the object of one run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jdl.typing import Event, Json, RunContext


class Callback:
    """The part of a hook that a run calls; every method may be overridden.

    `state` returns all that a callback keeps between steps, so that a resumed run equals an
    uninterrupted one.

    Attributes:
      best_step: step whose weights the run ends with; None: the last. Its checkpoint is kept.
      protected_steps: further steps whose checkpoints must be kept.
    """

    best_step: int | None = None
    protected_steps: Collection[int] = ()

    def begin(self) -> None:
        """Called once, before the first step."""

    def due(self, step: int) -> bool:
        """Whether the event of this step must carry the train state; the loop then waits for it."""
        del step
        return False

    def __call__(self, event: Event) -> None:
        """Called after every step, in order; delayed by one step unless a `due` returned True."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Called with every row of `metrics.jsonl`, after it is written."""

    def state(self) -> Json:
        """Returns the callback's state for the checkpoint."""
        return None

    def restore(self, state: Json) -> None:
        """Restores what `state` returned."""

    def close(self) -> None:
        """Called once at the end, also after an error or an interruption."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """The configuration of a callback."""

    def build(self, run: RunContext) -> Callback:
        """Returns the callback for a run that starts or resumes."""
        raise NotImplementedError
