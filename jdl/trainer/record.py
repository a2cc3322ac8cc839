"""What a run directory says about its run, and whether a run may go on in it."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl._version import __version__
from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten
from jdl.data.base import Data
from jdl.data.tokenizers import Saved
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import ExperimentRecord, RunDirectory, json_value, write_json
from jdl.paths import path_name
from jdl.typing import Json, PyTree

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(
    data: Mapping[str, Json], origin: Path | None, together: int = 1
) -> dict[str, Json]:
    """Everything outside the experiment that a result depends on.

    Args:
      data: fingerprints of the splits, by name.
      origin: the experiment's file, whose git commit is recorded.
      together: runs that are compiled and stepped as one on the devices.
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
            **({"runs_together": together} if together > 1 else {}),
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
    return {"python": platform.python_version(), "jdl": __version__, **found}


def peak_bytes(devices: Sequence[Any]) -> int:
    """The most memory that was in use: of the fullest device, else of this process so far."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in here]
    return max(peaks, default=0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Every leaf in which two nested mappings differ, as `path: old -> new`."""
    found = []
    for name in sorted({*old, *new}):
        below = f"{path}.{name}" if path else name
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, below)
        elif a != b:
            found.append(f"{below}: {a} -> {b}")
    return found


def params_sha256(params: PyTree) -> str:
    """SHA-256 of parameters: leaves in path order; path, dtype, shape, little-endian C bytes."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        array = to_host(leaf)
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{path} {array.dtype.name} {list(array.shape)} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def to_host(leaf: Any) -> np.ndarray:
    """A global array as NumPy, gathered from all processes where it is spread over them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_shards[0].data)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def mark(workdir: Path, name: str, experiment: Experiment, steps: int) -> None:
    """Makes a directory the run of an experiment that takes so many steps."""
    described = ExperimentRecord(experiment=name, total_steps=steps, fields=flatten(experiment))
    write_json(RunDirectory(workdir).experiment, described.to_json())


def describe(
    workdir: Path,
    file: ExperimentFile | None,
    overrides: Mapping[str, Json],
    surroundings: Mapping[str, Json],
) -> None:
    """Writes the files from which the run can be done again."""
    directory = RunDirectory(workdir)
    if file is not None:
        siblings = ((source, workdir / source.name) for source in file.siblings)
        for source, target in [(file.path, directory.script), *siblings]:
            if not target.exists() or not source.samefile(target):
                shutil.copyfile(source, target)
    write_json(directory.overrides, dict(overrides))
    write_json(directory.environment, surroundings)


def keep_tokenizer(workdir: Path, data: Data) -> None:
    """Writes the tokenizer of the data, where it has one, unless the directory holds it already."""
    path = RunDirectory(workdir).tokenizer
    if data.has_tokenizer and not path.exists():
        write_json(path, json.loads(data.tokenizer().to_json()))


def with_tokenizer(workdir: Path, experiment: Experiment) -> Experiment:
    """The experiment with the tokenizer that its run directory holds, if any, in place of its own.

    So nothing is learned anew, and another version of the library changes nothing.
    """
    data: Any = experiment.data
    if not (data.has_tokenizer and RunDirectory(workdir).tokenizer.exists()):
        return experiment
    data = dataclasses.replace(data, encoding=Saved(str(workdir)))
    return dataclasses.replace(experiment, data=data)


def check_resumable(workdir: Path, name: str, experiment: Experiment) -> None:
    """Refuses to go on with another experiment than the one that the directory holds.

    Only the length (upward), the strategy, the hooks and the runtime may change.

    Args:
      workdir: a run directory.
      name: the experiment's name.
      experiment: what is to go on.

    Raises:
      UserError: names what differs.
    """
    recorded = RunDirectory(workdir).read_experiment()
    if recorded.experiment != name:
        raise UserError(
            f"{workdir} holds a run of {recorded.experiment!r}, not of {name!r}: "
            f"choose another --workdir"
        )
    free = ("steps", "epochs", "strategy", "hooks", "runtime")
    old, new = (
        {key: value for key, value in fields.items() if key.split(".")[0] not in free}
        for fields in (recorded.fields, json_value(flatten(experiment)))
    )
    if changed := differences(old, new):
        raise UserError(
            f"{workdir} holds a run with other settings ({'; '.join(changed)}): only steps, "
            f"epochs, strategy, hooks and runtime may change when a run is resumed"
        )


def finished(workdir: Path, experiment: Experiment) -> bool:
    """Whether the run in a directory came to its end, and nothing longer is asked for now."""
    recorded = RunDirectory(workdir).read_experiment()
    length = [(e["steps"], e["epochs"]) for e in (recorded.fields, flatten(experiment))]
    return RunDirectory(workdir).result.exists() and length[0] == length[1]


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the directory's lock, which the kernel drops when the process ends, however it ends.

    Raises:
      UserError: another process holds it.
    """
    path = RunDirectory(workdir).lock
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{workdir} is in use by another run ({file.read().strip()})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _git_commit(origin: Path | None) -> str | None:
    """The commit of the working tree that a file lies in, with `+changes` if it was edited."""
    folder = (origin or Path.cwd() / "_").resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
