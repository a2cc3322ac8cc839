"""What a run's results depend on outside its experiment: versions, devices, flags, git commit."""

import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jdl._version import __version__
from jdl.ops import onednn
from jdl.typing import Json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(
    data: Mapping[str, Json], origin: Path | None, vectorized: int = 1
) -> dict[str, Json]:
    """Everything outside the experiment that a result depends on.

    Args:
      data: fingerprints of the splits, by name.
      origin: the experiment's file, whose git commit is recorded.
      vectorized: number of runs that are stepped together.
    """
    devices = jax.devices()
    return {
        "versions": versions(),
        "git_commit": _git_commit(origin),
        "devices": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
            "processes": jax.process_count(),
            **({"vectorized_runs": vectorized} if vectorized > 1 else {}),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        },
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name == "XLA_FLAGS" or name.startswith("JAX_")
        },
        "data": dict(data),
    }


def versions() -> dict[str, str]:
    """Versions of Python, jdl and the packages that compute."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    convolutions = onednn.version()
    if convolutions is not None and jax.default_backend() == "cpu":
        found["onednn"] = convolutions
    return {"python": platform.python_version(), "jdl": __version__, **found}


def peak_bytes(devices: Sequence[Any]) -> int:
    """Peak memory in use: of the fullest device, or of this process where devices do not report."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in here]
    return max(peaks, default=0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git_commit(origin: Path | None) -> str | None:
    """Returns the git commit of a file's working tree, with `+changes` if it has edits."""
    folder = (origin or Path.cwd() / "_").resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
