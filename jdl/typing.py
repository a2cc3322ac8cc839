"""The names that signatures share, and what a hook may ask of the run it serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

PyTree = Any
"""A nest of dicts, tuples and dataclasses with arrays at its leaves."""

Key = jax.Array
"""A typed PRNG key, shape (), as `jax.random.key` makes it."""

Keys = jax.Array
"""One typed PRNG key per example, shape (batch,)."""

Batch = Mapping[str, Any]
"""Arrays by name, examples along axis 0; `mask` (batch,) is False where a row is padding."""

Size = Any
"""Of an axis: an int, or a symbol where `jax.export` leaves it open."""

FILE_MODULE = "jdl_file_"
"""How the names of modules begin that stand for experiment files; the rest depends on the path."""

Json = Any
"""What `json.dumps` writes and `json.loads` gives back unchanged."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a hook is told after a step."""

    step: int
    """Batches consumed so far; the step that just ended has this number."""
    epoch: float
    """Passes over the training split so far."""
    metrics: Mapping[str, Any]
    """This step's mergeable metrics as Python floats (`jdl.metrics`)."""
    state: Any = None
    """The TrainState, at steps for which the hook's `due` said True; else None."""
    timing: Mapping[str, float]
    """`seconds` since training began, `training_seconds` of these, and `compile_seconds`."""


@runtime_checkable
class RunContext(Protocol):
    """What a hook sees of the run that it serves."""

    @property
    def experiment(self) -> Any:
        """The experiment as it runs, overrides included."""
        ...

    @property
    def workdir(self) -> Path:
        """The run directory."""
        ...

    @property
    def steps(self) -> int:
        """Batches that the whole run consumes."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches to one pass over the training split, rounded up."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, without the test split."""
        ...

    def evaluate(self, split: str, state: Any = None) -> dict[str, float]:
        """Metrics over a whole split, each example counted once."""
        ...

    def log(self, row: Mapping[str, Json]) -> None:
        """Appends a row to `metrics.jsonl` and tells every hook that reads rows."""
        ...

    def print(self, text: str) -> None:
        """Prints a line for the user, on the first process only."""
        ...

    @property
    def traces(self) -> Mapping[str, int]:
        """How often each compiled function was traced, by name."""
        ...

    steps_submitted: int
    """The last step given to the devices, one or more ahead of a late event."""

    def save(self) -> None:
        """Asks for a checkpoint once all hooks have seen this event, which must carry the state."""
        ...

    def stop(self, reason: str) -> None:
        """Ends the loop after this step."""
        ...
