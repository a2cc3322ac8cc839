"""Type aliases, events, and the interface through which hooks see a run."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from jdl.media import Media

PyTree = Any
"""Nested dicts, tuples and dataclasses with arrays as leaves."""

Key = jax.Array
"""A typed PRNG key, shape (), as `jax.random.key` makes it."""

Keys = jax.Array
"""One typed PRNG key per example, shape (batch,)."""

Batch = Mapping[str, Any]
"""Arrays by name, examples along axis 0; `mask` (batch,) is False for rows of padding."""

Size = Any
"""Size of an axis: an int, or a symbolic dimension of `jax.export`."""

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
"""What a program is lowered for, by JAX's names."""

FILE_MODULE = "jdl_file_"
"""Prefix of the module names of experiment files; the rest is a hash of the path."""

Json = Any
"""A value that survives a round trip through JSON."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Data passed to hooks after a step."""

    step: int
    """Batches consumed so far: the number of the step that has just ended."""
    epoch: float
    """Passes over the training split so far."""
    metrics: Mapping[str, Any]
    """This step's mergeable metrics as Python floats (`jdl.metrics`)."""
    gather: Callable[[], Any] | None = None
    """Returns `state`, at steps for which a hook's `due` returned True, else None."""
    timing: Mapping[str, float]
    """`seconds` since training began, `training_seconds` of these, and `compile_seconds`."""

    @functools.cached_property
    def state(self) -> Any:
        """The TrainState of the whole model, if `due` returned True at this step, else None.

        It is the same under every strategy, and valid until the hook returns.
        """
        return None if self.gather is None else self.gather()


@runtime_checkable
class RunContext(Protocol):
    """The interface of a run for its hooks."""

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
        """Total number of steps of the run."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps per pass over the training split, rounded up."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, without the test split."""
        ...

    def evaluate(self, split: str, state: Any = None, key: Key | None = None) -> dict[str, Any]:
        """Metrics over a whole split, each example counted once: floats and NumPy arrays."""
        ...

    def predict(self, x: Any, key: Key | None = None, *, state: Any = None) -> Any:
        """Predictions from raw inputs; of a step that is due, `state` is best left out."""
        ...

    def sample(
        self,
        count: int = 16,
        key: Key | None = None,
        *,
        split: str | None = None,
        state: Any = None,
    ) -> Media:
        """Samples of the task as images, texts or sounds."""
        ...

    def higher_is_better(self, metric: str) -> bool | None:
        """Whether a higher value of a metric is better; None if unknown."""
        ...

    def log(self, row: Mapping[str, Json]) -> None:
        """Appends a row to `metrics.jsonl` and passes it to the `row` method of every hook."""
        ...

    def print(self, text: str) -> None:
        """Prints a line for the user, on the first process only."""
        ...

    @property
    def traces(self) -> Mapping[str, int]:
        """Number of traces of each compiled function, by name."""
        ...

    steps_submitted: int
    """The last step given to the devices, one or more ahead of a late event."""

    def save(self, background: bool | None = None) -> None:
        """Requests a checkpoint after all hooks have handled this event, which has a state.

        Args:
          background: whether the checkpoints of this run are written while it trains on; None to
            leave that as it is, by default only on accelerators.
        """
        ...

    def stop(self, reason: str) -> None:
        """Ends the loop after this step."""
        ...
