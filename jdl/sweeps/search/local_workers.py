"""Workers of a study on this machine: processes that share its CPU cores and GPUs."""

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

POLL_INTERVAL = 0.5
"""Seconds between two polls of the workers."""


def run_workers(arguments: Sequence[str], count: int, show: Callable[[], None]) -> None:
    """Runs a `jdl` command in `count` processes and waits for them.

    A process that dies is not replaced: the others take over its trials.

    Args:
      arguments: of the command.
      count: of processes.
      show: called while waiting.

    Raises:
      UserError: all workers failed; the message is the first one's.
      Interrupted: the workers were terminated and have saved.
    """
    command = [sys.executable, "-m", "jdl", *arguments]
    with contextlib.ExitStack() as stack:
        stack.enter_context(Interruption())
        # Files, as a full pipe that nobody reads would block a worker.
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        started: list[subprocess.Popen[str]] = []
        stack.callback(_terminate, started)
        for index, file in enumerate(errors):
            started.append(_start(command, index, count, file))
        while any(process.poll() is None for process in started):
            time.sleep(POLL_INTERVAL)
            show()
        codes = [process.returncode for process in started]
        if all(codes):
            if EXIT_CODE in codes:
                raise Interrupted
            errors[0].seek(0)
            message = errors[0].read().strip().rpartition("\n")[2].removeprefix("jdl: ")
            raise UserError(message or f"every worker was killed (exit code {codes[0]})")


def _terminate(started: Sequence[subprocess.Popen[str]]) -> None:
    """Terminates workers gracefully and waits for them."""
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait()


def _start(
    command: Sequence[str], index: int, count: int, errors: TextIO
) -> "subprocess.Popen[str]":
    gpus = _gpus()
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, index, count))
        if count > len(gpus):
            workers_per_gpu = -(-count // len(gpus))
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / workers_per_gpu:.2f}"
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches this process alone, which terminates each once
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
    )
    # Set from here, before it has threads: a preexec_fn may deadlock beside JAX's own threads.
    # macOS and Windows have no CPU affinity.
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share(sorted(os.sched_getaffinity(0)), index, count))
    return process


def share(devices: Sequence[T], index: int, count: int) -> list[T]:
    """The devices of one of `count` workers; if there are fewer devices, one that is shared."""
    return list(devices[index::count]) or [devices[index % len(devices)]]


def _gpus() -> list[str]:
    """The visible GPUs as in `CUDA_VISIBLE_DEVICES`, found without starting JAX."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, _ in enumerate(listed.stdout.splitlines())]
