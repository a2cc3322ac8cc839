"""On Ctrl-C and SIGTERM a run saves and exits with code 75, five seconds after its step at most."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the same command can be run again."""

GRACE_SECONDS = 4.0
"""Seconds after which a process that does not react, as in a compilation, is terminated; beyond
those of the executions of a training loop."""

IN_FLIGHT = 2
"""Executions that a training loop may have to wait for before it saves."""


class Interrupted(SystemExit):
    """Raised when a signal ends a run; the process exits with code 75 unless it is caught."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Interruption:
    """Handles signals during a run, or during several that share it.

    Inside a loop, between `begin` and `end`, a signal only sets `requested`; the loop saves and
    ends. Elsewhere nothing needs saving, and the signal raises `Interrupted` at once.

    Args:
      shared: leave signals to JAX, which has all processes of a run agree on a step to end at.
      hard: end the process at once, without unwinding; for the command line, outside of a run.
    """

    def __init__(self, shared: bool = False, hard: bool = False) -> None:
        self.requested = self.repeated = False
        self._shared, self._hard = shared, hard
        self._looping, self._execution_seconds = 0, 0.0
        self._over = threading.Event()
        self._old: dict[int, Any] = {}

    def begin(self) -> None:
        """From here on a signal only sets `requested`."""
        self._looping += 1

    def end(self) -> None:
        """From here on a signal raises at once, unless another loop is on."""
        self._looping -= 1
        if self.requested:
            raise Interrupted

    def expect(self, seconds: float) -> None:
        """Takes note of how long an execution of the loop may last, without its compilation."""
        self._execution_seconds = seconds

    def acknowledge(self) -> None:
        """Lets the run end by itself, however long that takes."""
        self._over.set()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._shared:
            self._old[signal.SIGINT] = signal.signal(signal.SIGINT, _as_sigterm)
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._handle)
        # The handler runs between bytecodes only. The kernel writes to this pipe at once, so
        # that a thread can end a process whose main thread is deep inside a compilation.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        if self._old and not self._shared:
            signal.set_wakeup_fd(self._old_wakeup)
            self._over.set()
            os.close(self._write)
            self._thread.join()
            os.close(self._read)
        if self.requested and kind is None:
            raise Interrupted  # what was raised before came up where it was ignored, in a callback

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._hard:
            os._exit(EXIT_CODE)
        self.repeated, self.requested = self.requested, True
        if self.repeated:
            self._over.set()
            before = self._old[number]
            if callable(before):
                before(number, frame)
        if self.repeated or not self._looping:
            raise Interrupted

    def _watch(self) -> None:
        signalled = os.read(self._read, 1)
        grace = GRACE_SECONDS + IN_FLIGHT * self._execution_seconds
        if signalled and not self._over.wait(grace):
            os._exit(EXIT_CODE)


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    """Ctrl-C on one of several processes: JAX tells the others of a SIGTERM, not of this."""
    os.kill(os.getpid(), signal.SIGTERM)
