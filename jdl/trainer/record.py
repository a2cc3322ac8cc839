"""Writes the record of a run into its directory, and checks it when the run is resumed."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.config.experiment_file import ExperimentFile, load
from jdl.config.objects import describe_object, is_opaque, rebuild_object
from jdl.config.overrides import flatten, override
from jdl.data.arrays import Unkept
from jdl.data.base import location_paths
from jdl.data.pipeline import Positions
from jdl.data.tokenizers import Saved
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import DataRecord, ExperimentRecord, RunDirectory, json_value, read_json, write_json
from jdl.paths import path_name
from jdl.trainer.environment import environment
from jdl.trainer.run import Run
from jdl.typing import Json, PyTree

RESUMABLE = ("steps", "epochs", "strategy", "hooks", "runtime")
"""Fields of an experiment that may change when its run is resumed; steps and epochs upward."""

_log = logging.getLogger(__name__)


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


def write(
    run: Run,
    found: "FoundRun",
    file: ExperimentFile | None,
    overrides: Mapping[str, Json],
    vectorized: int,
) -> None:
    """Writes what a run directory records before training; checks the data of a resumed run.

    `experiment.json`, which makes the directory a run directory, comes first. The others are those
    that `jdl reproduce` reads.

    Args:
      run: the run that starts or resumes.
      found: its experiment, compared with the directory.
      file: the experiment's file.
      overrides: what was changed in it, by path.
      vectorized: number of runs that are stepped together.

    Raises:
      UserError: the data changed, or the run would be shorter.
    """
    directory, data = RunDirectory(run.workdir), run.experiment.data
    surroundings = environment(run.data.fingerprints(), file and file.path, vectorized)
    if found.recorded is not None:
        _check_surroundings(run, found.recorded, surroundings)
    if jax.process_index() != 0:
        return
    for stale in (
        directory.result,
        directory.calibration,
        directory.audit,
        directory.robustness,
    ):
        stale.unlink(missing_ok=True)  # of the weights so far
    written = ExperimentRecord(experiment=run.name, total_steps=run.steps, fields=found.fields)
    write_json(directory.experiment, written.to_json())
    if not directory.data.exists():
        write_json(directory.data, _data_record(run).to_json())
    if data.has_tokenizer and not directory.tokenizer.exists():
        write_json(directory.tokenizer, json.loads(data.tokenizer().to_json()))
    if not directory.objects.exists():
        write_json(directory.objects, describe_object(found.experiment))
    if file is not None:
        siblings = ((source, run.workdir / source.name) for source in file.siblings)
        for source, target in [(file.path, directory.script), *siblings]:
            if not target.exists() or not source.samefile(target):
                shutil.copyfile(source, target)
    write_json(directory.overrides, dict(overrides))
    write_json(directory.environment, surroundings)


def _data_record(run: Run) -> DataRecord:
    made = ("mask", *(Positions._fields if run.experiment.data.needs_positions else ()))
    arrays = {name: leaf for name, leaf in run.batch.items() if name not in made}
    return DataRecord(
        examples={**{s: run.data.count(s) for s in run.data.names}, "train": run.examples},
        arrays={
            name: {"shape": list(leaf.shape[1:]), "dtype": str(leaf.dtype)}
            for name, leaf in arrays.items()
        },
        fitted=run.experiment.data.fit(),
    )


def _check_surroundings(
    run: Run, recorded: ExperimentRecord, surroundings: Mapping[str, Any]
) -> None:
    """Raises for changed data or a shorter run; prints what else may change the results."""
    if run.steps < recorded.total_steps:
        raise UserError(
            f"{run.workdir} holds a run of {recorded.total_steps} steps: steps and epochs may "
            f"only grow, not shrink to {run.steps}"
        )
    before = read_json(RunDirectory(run.workdir).environment) or surroundings
    if changed := changed_data(run.workdir, surroundings["data"]):
        raise UserError(f"the data of {run.workdir} changed since it began: {changed}")
    for part in ("versions", "devices", "flags"):
        for difference in differences(before[part], surroundings[part], part):
            run.print(f"resuming, but results may differ in bits: {difference}")


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

    name: str  # of the experiment
    experiment: Experiment
    overrides: dict[str, Json]
    file: ExperimentFile | None = None  # None: the run was started from Python


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
    if not directory.experiment.exists() and (workdir / "seed-0").exists():
        raise UserError(f"{workdir} holds several runs: name one, such as {workdir}/seed-0")
    recorded = directory.read_experiment()
    if path is None and not directory.script.exists():
        return RecordedRun(recorded.experiment, read_objects(workdir), {})
    try:
        file = load(path or directory.script)
    except UserError as error:
        unread = isinstance(error.__cause__, OSError)
        if path is not None or not unread or not directory.objects.exists():
            raise
        # It may have read data that is no longer there, which the record does not need.
        _log.warning("%s: opened as recorded in %s", error, directory.objects)
        return RecordedRun(recorded.experiment, read_objects(workdir), {})
    file = dataclasses.replace(file, name=recorded.experiment)
    overrides = read_json(directory.overrides) or {}
    experiment = override(file.experiment, overrides)
    # Arrays are not needed either; where they are evaluated their hash is compared.
    free = (*location_paths(experiment.data), "data.arrays")
    if changed := _changes(recorded, experiment, json_value(flatten(experiment)), free):
        raise UserError(
            f"{file.path} no longer gives the settings recorded in {workdir}: {'; '.join(changed)}"
        )
    return RecordedRun(recorded.experiment, experiment, overrides, file)


def read_objects(workdir: Path, **given: Any) -> Experiment:
    """Rebuilds the experiment of a run that was started from Python.

    Args:
      workdir: the run directory.
      **given: fields of the experiment, in place of those that no import path leads to.

    Raises:
      UserError: a class or function is found nowhere, or has other settings than the run.
    """
    directory = RunDirectory(workdir)
    description = read_json(directory.objects)
    if description is None:
        raise UserError(
            f"{workdir} holds neither experiment.py nor objects.json: name the file of its "
            f"experiment with --experiment"
        )
    known, skipped = dict(given), [*given]
    for name, each in description["fields"].items():
        # An evaluation needs no optimizer, and what may change when a run is resumed has defaults.
        if name not in given and name in ("optimizer", *RESUMABLE) and is_opaque(each):
            skipped.append(name)
        elif name not in given:
            known[name] = _rebuilt(workdir, name, each)
    experiment = Experiment(**known)
    recorded = directory.read_experiment()
    if isinstance(experiment.data, Unkept):
        skipped.append("data")
    checked = [name for name in skipped if name not in ("model", "task")]
    if changed := _changes(recorded, experiment, flatten(experiment), (*RESUMABLE, *checked)):
        raise UserError(f"{workdir} holds a run with other settings: {'; '.join(changed)}")
    return experiment


def _rebuilt(workdir: Path, name: str, description: Json) -> Any:
    """A field of an experiment from its description."""
    try:
        if name == "data" and is_opaque(description["fields"].get("arrays")):
            kept = {"transforms", "device_transforms"} & description["fields"].keys()
            parts = {each: description["fields"][each] for each in kept}
            return Unkept(**{k: rebuild_object(v, f"data.{k}") for k, v in parts.items()})
        return rebuild_object(description, name)
    except UserError as error:
        raise UserError(
            f"{workdir}: {error}: pass it, as in jdl.open({str(workdir)!r}, {name}=...)"
        ) from error


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """An experiment, compared with the run that a directory holds of it."""

    experiment: Experiment  # with the tokenizer that the directory contains, if any
    name: str
    workdir: Path
    fields: dict[str, Json]  # the settings of the experiment by path, without that tokenizer
    recorded: ExperimentRecord | None = None  # None: the directory holds no run yet
    is_finished: bool = False  # and the experiment asks for no further steps
    is_moved: bool = False  # whether the experiment locates its data elsewhere


def find_run(
    workdir: Path, experiment: Experiment, name: str | None = None, free: Sequence[str] = ()
) -> FoundRun:
    """Compares an experiment with what a directory records.

    Args:
      workdir: the run directory, which may be empty or missing if there is a `name`.
      experiment: only what a resumed run may change may differ from the record.
      name: of the experiment; None for the recorded one.
      free: paths of further fields that may differ, for a run that is not trained on.

    Raises:
      UserError: the directory holds a run of another experiment; names the fields that differ.
    """
    directory, known = RunDirectory(workdir), with_tokenizer(workdir, experiment)
    fields = json_value(flatten(experiment))
    if name is not None and not directory.experiment.exists():
        return FoundRun(experiment=known, name=name, workdir=workdir, fields=fields)
    recorded = directory.read_experiment()
    if name not in (None, recorded.experiment):
        raise UserError(
            f"{workdir} holds a run of {recorded.experiment!r}, not of {name!r}: choose another "
            f"--workdir"
        )
    locations = location_paths(experiment.data)
    if changed := _changes(recorded, experiment, fields, (*RESUMABLE, *locations, *free)):
        raise UserError(
            f"{workdir} holds a run with other settings ({'; '.join(changed)}): only "
            f"{', '.join(RESUMABLE)} and the data's location may change when a run is resumed; "
            f"jdl.open with allow_changed_data evaluates on other data"
        )
    before = recorded.fields
    same_length = all(before[each] == fields[each] for each in ("steps", "epochs"))
    return FoundRun(
        experiment=known,
        name=recorded.experiment,
        workdir=workdir,
        fields=fields,
        recorded=recorded,
        is_finished=same_length and directory.result.exists(),
        is_moved=any(before.get(path) != fields[path] for path in locations),
    )


def changed_data(workdir: Path, found: Mapping[str, Json]) -> str:
    """Describes how splits differ from those that a run in a directory began with.

    Args:
      workdir: the run directory.
      found: fingerprints of the splits, by name.

    Returns:
      The differences; empty if there are none.
    """
    recorded = (read_json(RunDirectory(workdir).environment) or {}).get("data", found)
    # The name of a source may be that of its file, which may have been renamed.
    old, new = (
        {split: {k: v for k, v in each.items() if k != "source"} for split, each in data.items()}
        for data in (recorded, found)
    )
    return "; ".join(differences(old, new, "data"))


def _changes(
    recorded: ExperimentRecord,
    experiment: Experiment,
    fields: Mapping[str, Json],
    free: Sequence[str] = (),
) -> list[str]:
    """Recorded settings that differ in an experiment and its `fields`, except `free` ones.

    A field that is younger than the record does not differ while it has its default.
    """
    younger = [path for path in fields if path not in recorded.fields]
    free = (*free, *(path for path in younger if _has_new_default(path, experiment, recorded)))
    old, new = (
        {path: x for path, x in each.items() if not _is_below(path, free)}
        for each in (recorded.fields, fields)
    )
    return differences(old, new)


def _has_new_default(path: str, experiment: Experiment, recorded: ExperimentRecord) -> bool:
    """Whether the first field along a path that the record lacks has its default."""
    owner: Any = experiment
    names = path.split(".")
    for index, name in enumerate(names):
        known = ".".join(names[: index + 1])
        if not any(_is_below(each, (known,)) for each in recorded.fields):
            return _has_default(owner, name)
        if dataclasses.is_dataclass(owner):
            owner = getattr(owner, name, None)
        else:
            owner = dict(owner).get(name) if isinstance(owner, Mapping) else owner[int(name)]
    return False


def _has_default(owner: Any, name: str) -> bool:
    field = getattr(type(owner), "__dataclass_fields__", {}).get(name)
    if field is None:
        return False
    made = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if made else field.default
    same = flatten(default, name) == flatten(getattr(owner, name), name)
    return default is not dataclasses.MISSING and same


def _is_below(path: str, parents: Sequence[str]) -> bool:
    """Whether a path is one of others, or of a field of theirs."""
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


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
