"""Writes the record of a run into its directory, and checks it when the run is resumed."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl._version import __version__
from jdl.config.experiment_file import ExperimentFile, load
from jdl.config.overrides import flatten, override
from jdl.data.base import Data, location_paths
from jdl.data.tokenizers import Saved
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import ExperimentRecord, RunDirectory, json_value, read_json, write_json
from jdl.paths import path_name
from jdl.typing import Json, PyTree

RESUMABLE = ("steps", "epochs", "strategy", "hooks", "runtime")
"""Fields of an experiment that may change when its run is resumed; steps and epochs upward."""

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
    return {"python": platform.python_version(), "jdl": __version__, **found}


def peak_bytes(devices: Sequence[Any]) -> int:
    """Peak memory in use: of the fullest device, or of this process where devices do not report."""
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


def write_experiment(workdir: Path, name: str, experiment: Experiment, steps: int) -> None:
    """Writes `experiment.json`, which makes the directory a run directory."""
    described = ExperimentRecord(experiment=name, total_steps=steps, fields=flatten(experiment))
    write_json(RunDirectory(workdir).experiment, described.to_json())


def write_provenance(
    workdir: Path,
    file: ExperimentFile | None,
    overrides: Mapping[str, Json],
    surroundings: Mapping[str, Json],
) -> None:
    """Writes experiment file, overrides and environment, for `jdl reproduce`."""
    directory = RunDirectory(workdir)
    if file is not None:
        siblings = ((source, workdir / source.name) for source in file.siblings)
        for source, target in [(file.path, directory.script), *siblings]:
            if not target.exists() or not source.samefile(target):
                shutil.copyfile(source, target)
    write_json(directory.overrides, dict(overrides))
    write_json(directory.environment, surroundings)


def save_tokenizer(workdir: Path, data: Data) -> None:
    """Writes the tokenizer of the data, if it has one, unless the directory contains it already."""
    path = RunDirectory(workdir).tokenizer
    if data.has_tokenizer and not path.exists():
        write_json(path, json.loads(data.tokenizer().to_json()))


def with_tokenizer(workdir: Path, experiment: Experiment) -> Experiment:
    """The experiment with the tokenizer saved in its run directory, if any.

    A resumed run does not train the tokenizer again, which another version of the library might do
    differently.
    """
    data: Any = experiment.data
    if not (data.has_tokenizer and RunDirectory(workdir).tokenizer.exists()):
        return experiment
    data = dataclasses.replace(data, encoding=Saved(str(workdir)))
    return dataclasses.replace(experiment, data=data)


@dataclass(frozen=True)
class RecordedRun:
    """The experiment of a run directory, read from its files."""

    file: ExperimentFile
    experiment: Experiment
    overrides: dict[str, Json]


def read_run(workdir: Path, path: Path | None = None) -> RecordedRun:
    """Reads the experiment of a run directory by executing its `experiment.py`.

    Args:
      workdir: the run directory.
      path: an experiment file to use instead.

    Raises:
      UserError: this is no run directory, or the file does not define the recorded settings.
    """
    directory = RunDirectory(workdir)
    if directory.study.exists():
        raise UserError(f"{workdir} holds a search: name a run of it, such as {workdir}/best")
    recorded = directory.read_experiment()
    if path is None and not directory.script.exists():
        raise UserError(
            f"{workdir} holds no experiment.py, since the run was started from Python: name the "
            f"file of its experiment with --experiment"
        )
    file = load(path or directory.script)
    file = dataclasses.replace(file, name=recorded.experiment)
    overrides = read_json(directory.overrides) or {}
    experiment = override(file.experiment, overrides)
    if changed := _changes(recorded, experiment):
        raise UserError(
            f"{file.path} no longer gives the settings recorded in {workdir}: {'; '.join(changed)}"
        )
    return RecordedRun(file, experiment, overrides)


def check_name(workdir: Path, name: str) -> None:
    """Raises a UserError if a directory holds a run of an experiment of another name."""
    recorded = RunDirectory(workdir).read_experiment().experiment
    if recorded != name:
        raise UserError(
            f"{workdir} holds a run of {recorded!r}, not of {name!r}: choose another --workdir"
        )


def check_settings(workdir: Path, experiment: Experiment) -> None:
    """Raises if an experiment is not that of a run directory, apart from what a resume may change.

    Raises:
      UserError: names the fields that differ.
    """
    recorded = RunDirectory(workdir).read_experiment()
    if changed := _changes(recorded, experiment, RESUMABLE):
        raise UserError(
            f"{workdir} holds a run with other settings ({'; '.join(changed)}): only "
            f"{', '.join(RESUMABLE)} and the location of the data may change when a run is resumed"
        )


def moved(workdir: Path, experiment: Experiment) -> bool:
    """Whether an experiment locates its data elsewhere than the run in a directory."""
    recorded, given = RunDirectory(workdir).read_experiment().fields, flatten(experiment)
    return any(recorded.get(path) != given[path] for path in location_paths(experiment.data))


def check_data(workdir: Path, found: Mapping[str, Json]) -> None:
    """Raises if the splits are not those that a run in a directory began with.

    Args:
      workdir: the run directory.
      found: fingerprints of the splits, by name.

    Raises:
      UserError: names the splits that differ.
    """
    recorded = (read_json(RunDirectory(workdir).environment) or {}).get("data", found)
    # The name of a source may be that of its file, which may have been renamed.
    old, new = (
        {split: {k: v for k, v in each.items() if k != "source"} for split, each in data.items()}
        for data in (recorded, found)
    )
    if changed := differences(old, new, "data"):
        raise UserError(f"the data of {workdir} changed since it began: {'; '.join(changed)}")


def _changes(
    recorded: ExperimentRecord, experiment: Experiment, free: tuple[str, ...] = ()
) -> list[str]:
    """Recorded settings that an experiment changes, except `free` fields and data locations."""
    free = (*free, *location_paths(experiment.data))
    old, new = (
        {path: x for path, x in fields.items() if not {path, path.split(".")[0]} & {*free}}
        for fields in (recorded.fields, json_value(flatten(experiment)))
    )
    return differences(old, new)


def is_finished(workdir: Path, experiment: Experiment) -> bool:
    """Whether the run of a directory has finished and the experiment is no longer than it."""
    recorded = RunDirectory(workdir).read_experiment()
    length = [(e["steps"], e["epochs"]) for e in (recorded.fields, flatten(experiment))]
    return RunDirectory(workdir).result.exists() and length[0] == length[1]


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of the directory, which the kernel releases when the process ends or dies.

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
