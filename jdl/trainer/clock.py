"""Where the seconds of a run go."""

import contextlib
import time
from collections.abc import Iterator

from jdl.files import CheckpointMetadata
from jdl.parallel import Compilations


class Clock:
    """Accounts for the seconds of one run, those before it was resumed included.

    Args:
      compilations: traces and compile time of the run's compiled functions.

    Attributes:
      training_seconds: spent in training steps, without compiling.
      input_seconds: spent waiting for input, part of `training_seconds`.
    """

    def __init__(self, compilations: Compilations) -> None:
        self.training_seconds = self.input_seconds = 0.0
        self._compilations, self._begun = compilations, time.perf_counter()
        self._earlier = self._compiled_earlier = 0.0

    def timing(self) -> dict[str, float]:
        """Returns the seconds until now, as `CheckpointMetadata` names them."""
        return {
            "seconds": self._earlier + time.perf_counter() - self._begun,
            "training_seconds": self.training_seconds,
            "input_seconds": self.input_seconds,
            "compile_seconds": self._compiled_earlier + self._compilations.seconds,
        }

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Adds the time inside to `training_seconds`, without the part spent compiling."""
        begun, compiled = time.perf_counter(), self._compilations.seconds
        yield
        compiling = self._compilations.seconds - compiled
        self.training_seconds += time.perf_counter() - begun - compiling

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Adds the time inside to `input_seconds`."""
        begun = time.perf_counter()
        yield
        self.input_seconds += time.perf_counter() - begun

    def restore(self, metadata: CheckpointMetadata) -> None:
        """Continues from the seconds of an earlier process."""
        self._earlier = metadata.seconds
        self.training_seconds = metadata.training_seconds
        self.input_seconds = metadata.input_seconds
        self._compiled_earlier = metadata.compile_seconds
