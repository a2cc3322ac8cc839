"""Where the seconds of a run go."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

from jdl.files import CheckpointMetadata
from jdl.parallel import Compilations


class Clock:
    """Accounts for the seconds of one run, those before it was resumed included.

    Args:
      compilations: traces and compile time of the run's compiled functions.
    """

    def __init__(self, compilations: Compilations) -> None:
        # In training steps, without compiling; and the part of these spent waiting for input.
        self._seconds = {"training_seconds": 0.0, "input_seconds": 0.0}
        self._compilations, self._begun = compilations, time.perf_counter()
        self._earlier = self._compiled_earlier = 0.0

    def timing(self) -> dict[str, float]:
        """Returns the seconds until now, as `CheckpointMetadata` names them."""
        return {
            "seconds": self._earlier + time.perf_counter() - self._begun,
            **self._seconds,
            "compile_seconds": self._compiled_earlier + self._compilations.seconds,
        }

    @contextlib.contextmanager
    def measuring(self, name: Literal["training_seconds", "input_seconds"]) -> Iterator[None]:
        """Adds the time inside, without the part spent compiling."""
        begun, compiled = time.perf_counter(), self._compilations.seconds
        yield
        compiling = self._compilations.seconds - compiled
        self._seconds[name] += time.perf_counter() - begun - compiling

    def restore(self, metadata: CheckpointMetadata) -> None:
        """Continues from the seconds of an earlier process."""
        self._earlier = metadata.seconds
        self._seconds["training_seconds"] = metadata.training_seconds
        self._seconds["input_seconds"] = metadata.input_seconds
        self._compiled_earlier = metadata.compile_seconds
