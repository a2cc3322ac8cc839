"""What happens between steps: a hook says what, its listener does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jdl.typing import Event, Json, RunContext


class Listener:
    """The running part of a hook. Everything here may be overridden; nothing need be.

    What a listener remembers between steps it gives in `state`, so that a resumed run goes on as
    if it had never stopped.
    """

    def begin(self) -> None:
        """Told once, before the first step."""

    def due(self, step: int) -> bool:
        """Whether the event of this step must carry the state; the loop then waits for it."""
        del step
        return False

    def __call__(self, event: Event) -> None:
        """Told after every step, in order; where nothing is due, one step late."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Told of every row of `metrics.jsonl`, right after it was written."""

    def state(self) -> Json:
        """What a checkpoint keeps of this listener."""
        return None

    def restore(self, state: Json) -> None:
        """Takes back what `state` gave."""

    def protected_steps(self) -> set[int]:
        """Steps whose checkpoints must not be deleted."""
        return set()

    def best_step(self) -> int | None:
        """The step whose weights the run ends with; None leaves it at the last."""
        return None

    def close(self) -> None:
        """Told once, at the end, however the run ends."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A description of what is to happen between steps."""

    def build(self, run: RunContext) -> Listener:
        """The listener for a run that is about to begin or to go on."""
        raise NotImplementedError
