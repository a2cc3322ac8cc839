"""Several workers of a study on this machine, each a process with its share of the devices."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from jdl.errors import UserError
from jdl.interrupt import EXIT_CODE, Interrupted

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
    started = [_start(command, index, count) for index in range(count)]
    try:
        while any(process.poll() is None for process in started):
            time.sleep(POLL)
            show()
    except BaseException:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait()
        raise
    codes = [process.returncode for process in started]
    if all(codes):
        if EXIT_CODE in codes:
            raise Interrupted
        complaints = [process.stderr.read().strip() for process in started if process.stderr]
        said = complaints[0].rpartition("\n")[2].removeprefix("jdl: ")
        raise UserError(said or f"every worker was killed (exit code {codes[0]})")


def _start(command: Sequence[str], index: int, count: int) -> subprocess.Popen[str]:
    cores = share(sorted(os.sched_getaffinity(0)), index, count)
    gpus = _gpus()
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, index, count))
        if count > len(gpus):
            together = -(-count // len(gpus))
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.2f}"
    return subprocess.Popen(
        command,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


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
