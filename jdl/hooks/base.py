"""Base classes: a hook is the frozen configuration, its callback the object of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jdl.typing import Event, Json, RunContext


class Callback:
    """The part of a hook that a run calls; every method may be overridden.

    `state` returns all that a callback remembers between steps: a resumed run then continues as
    if it had never stopped.
    """

    def begin(self) -> None:
        """Called once, before the first step."""

    def due(self, step: int) -> bool:
        """Whether the event of this step must carry the state, for which the loop then waits."""
        del step
        return False

    def __call__(self, event: Event) -> None:
        """Called after every step, in order; delayed by one step unless a `due` returned True."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Called with every row of `metrics.jsonl`, after it is written."""

    def state(self) -> Json:
        """Returns what a checkpoint keeps of this callback."""
        return None

    def restore(self, state: Json) -> None:
        """Restores what `state` returned."""

    def protected_steps(self) -> set[int]:
        """Returns the steps whose checkpoints must be kept."""
        return set()

    def best_step(self) -> int | None:
        """Returns the step whose weights the run ends with; None: the last."""
        return None

    def close(self) -> None:
        """Called once at the end, also after an error or an interruption."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """The configuration of something that happens between steps."""

    def build(self, run: RunContext) -> Callback:
        """Returns the callback for a run that starts or resumes."""
        raise NotImplementedError
