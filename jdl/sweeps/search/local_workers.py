"""Several workers of a study on this machine, each a process with its share of the devices."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TextIO, TypeVar

from jdl.errors import UserError
from jdl.trainer.interrupt import EXIT_CODE, Interrupted, Interruption

T = TypeVar("T")

POLL = 0.5
"""Seconds between two looks at the workers."""


def spawn(words: Sequence[str], count: int, show: Callable[[], None]) -> None:
    """Runs a command of `jdl` in `count` processes at once, until all have ended.

    One that dies is not replaced: the others take up what it was at.

    Args:
      words: of the command.
      count: how many.
      show: called now and then.

    Raises:
      UserError: all of them failed; says how the first did.
      Interrupted: they were asked to end, and have saved.
    """
    command = [sys.executable, "-m", "jdl", *words]
    with contextlib.ExitStack() as stack:
        stack.enter_context(Interruption())
        # Files, since nobody empties the pipes of workers that complain much.
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        started: list[subprocess.Popen[str]] = []
        stack.callback(_end, started)
        for index, file in enumerate(said):
            started.append(_start(command, index, count, file))
        while any(process.poll() is None for process in started):
            time.sleep(POLL)
            show()
        codes = [process.returncode for process in started]
        if all(codes):
            if EXIT_CODE in codes:
                raise Interrupted
            said[0].seek(0)
            complaint = said[0].read().strip().rpartition("\n")[2].removeprefix("jdl: ")
            raise UserError(complaint or f"every worker was killed (exit code {codes[0]})")


def _end(started: Sequence[subprocess.Popen[str]]) -> None:
    """Has workers that still run save and end, and waits for it."""
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait()


def _start(command: Sequence[str], index: int, count: int, said: TextIO) -> "subprocess.Popen[str]":
    gpus = _gpus()
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, index, count))
        if count > len(gpus):
            together = -(-count // len(gpus))
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.2f}"
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends each once
        stdout=subprocess.DEVNULL,
        stderr=said,
        text=True,
    )
    # From here, before it has threads: code between fork and exec may deadlock beside JAX's own.
    # Not every system lets a process be bound to cores.
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share(sorted(os.sched_getaffinity(0)), index, count))
    return process


def share(devices: Sequence[T], index: int, count: int) -> list[T]:
    """What one of `count` workers gets of some devices; where they are too few, one with others."""
    return list(devices[index::count]) or [devices[index % len(devices)]]


def _gpus() -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` names them; found without JAX."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, _ in enumerate(listed.stdout.splitlines())]
