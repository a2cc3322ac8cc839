"""Checkpoints: Orbax arrays and `meta.json`, verified by a manifest that is written last.

A checkpoint is a directory `STEP.N`, where N counts the saves of that step: a save never writes
into an older one, which stays valid until the new one is complete. A checkpoint exists once it has
its `manifest.json`, with size and SHA-256 of every other file. A save that was cut short has none,
and later damage is found before anything is restored: Orbax itself restores changed bytes without
complaint. Only arrays and JSON are read; nothing in a checkpoint is imported or executed.

When to save, and which steps to keep, is decided by hooks (`jdl.hooks.Checkpoint`). A store only
writes what it is given.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jdl.errors import UserError, first_line
from jdl.files import CheckpointMetadata
from jdl.paths import path_name
from jdl.state import TrainState
from jdl.typing import Json, PyTree

MANIFEST = "manifest.json"
META = "meta.json"


@dataclass(frozen=True, order=True)
class SaveName:
    """The name `STEP.N` of a checkpoint; ordered by its numbers, since "10.0" < "9.0" as text."""

    step: int
    count: int  # earlier saves of this step

    @classmethod
    def parse(cls, name: str) -> "SaveName | None":
        """The inverse of `str`; None for the name of anything else."""
        match = re.fullmatch(r"(\d+)\.(\d+)", name)
        return cls(*map(int, match.groups())) if match else None

    def __str__(self) -> str:
        return f"{self.step}.{self.count}"


class CheckpointStore:
    """Saves and restores the checkpoints of one run.

    Args:
      directory: contains the checkpoints.
      warn: called with a line about each checkpoint that is skipped.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None] = print) -> None:
        import orbax.checkpoint as ocp  # here, since `import jdl` must not load it

        # Orbax logs tracebacks of errors that are raised here as one sentence.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._directory, self._warn = directory, warn
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._args = ocp.args
        # One thread, so that saves complete, and older checkpoints are deleted, in order.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return sorted({name.step for name in self._complete()})

    def save(self, state: TrainState, metadata: CheckpointMetadata, keep: Iterable[int]) -> None:
        """Starts writing a checkpoint; returns once the state may be changed.

        Waits for the previous save first. When this one is complete, checkpoints of steps that are
        not in `keep` are deleted.

        Raises:
          UserError: the previous one could not be written.
        """
        self.wait()
        # No earlier save has used this name, complete or not.
        earlier = self._directory.glob(f"{metadata.step}.*")
        counts = [int(path.suffix[1:]) for path in earlier if path.suffix[1:].isdecimal()]
        count = max(counts, default=-1) + 1
        if jax.process_count() > 1:
            # Processes may see a shared file system at different times; all must use one name.
            count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
        path = self._directory / f"{metadata.step}.{count}"
        plain = {**vars(state), "key": jax.random.key_data(state.key)}  # Orbax knows no typed keys
        try:
            if jax.process_index() == 0:
                path.mkdir(parents=True)
            # Orbax copies the arrays to the host before it returns, then writes in its own thread.
            self._writer.save((path / "state").resolve(), args=self._args.StandardSave(plain))
        except Exception as error:
            raise _unwritten(path, error) from error
        # As text: what the hooks returned may change while the thread writes.
        text = json.dumps(metadata.to_json(), allow_nan=False)
        self._pending = self._thread.submit(self._finish, path, text, {*keep} - {metadata.step})

    def wait(self) -> None:
        """Waits until the last save is complete, on all processes.

        Raises:
          UserError: it could not be written; earlier ones are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            if jax.process_count() > 1:
                # The first process writes the manifest: the others must not rely on a checkpoint
                # that does not exist yet.
                multihost_utils.sync_global_devices("checkpoint")

    def restore(
        self, step: int, abstract_state: TrainState
    ) -> tuple[TrainState, CheckpointMetadata]:
        """The checkpoint of a step, verified.

        Args:
          step: its step.
          abstract_state: shapes, dtypes and shardings of the state.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self._read(self._of_step(step), abstract_state)

    def restore_latest(
        self, abstract_state: TrainState
    ) -> tuple[TrainState, CheckpointMetadata] | None:
        """The newest valid checkpoint, or None where no save was ever completed.

        Raises:
          UserError: there are some, and all are damaged.
        """
        path = self._latest()
        return None if path is None else self._read(path, abstract_state)

    def restore_evaluation(self, abstract_state: TrainState) -> TrainState | None:
        """The state that the run is evaluated with; None where no save was completed.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        path = self._evaluation_path()
        return None if path is None else self._read(path, abstract_state)[0]

    def evaluation_step(self) -> int | None:
        """The step whose weights the run is evaluated with; None where no save was completed.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        path = self._evaluation_path()
        name = path and SaveName.parse(path.name)
        return name.step if name else None

    def evaluation_arrays(self) -> dict[str, np.ndarray] | None:
        """The arrays that the run is evaluated with, by path; None where no save was completed.

        These are `params`, averaged where the optimizer averages, and `collections`: of the best
        checkpoint if the run returns to it, else of the newest.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        path = self._evaluation_path()
        return None if path is None else self._evaluation_arrays(path)

    def step_arrays(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a step as `evaluation_arrays` returns those of the run.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self._evaluation_arrays(self._of_step(step))

    def _evaluation_arrays(self, path: Path) -> dict[str, np.ndarray]:
        metadata, tree = self._describe(path)
        # NumPy arrays as targets: the strategy that the run was saved under plays no role.
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
        args = self._args.StandardRestore(target)
        state = self._writer.restore((path / "state").resolve(), args=args)
        arrays = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}
        return _evaluated(arrays, metadata.averages)

    def close(self) -> None:
        """Waits for the last save and ends the threads."""
        try:
            if self._pending is not None:
                self._pending.result()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def _of_step(self, step: int) -> Path:
        names = [name for name in self._complete() if name.step == step]
        if not names:
            raise UserError(f"{self._directory} has no checkpoint of step {step}")
        path = self._directory / str(names[-1])
        if damage := verify(path):
            raise UserError(f"checkpoint {path.name} is damaged: {damage}")
        return path

    def _evaluation_path(self) -> Path | None:
        """The best checkpoint if the run returns to it, else the newest valid one."""
        path = self._latest()
        best = None if path is None else self._metadata(path).best_step
        return path if best is None else self._of_step(best)

    def _latest(self) -> Path | None:
        """The newest valid checkpoint; warns about each that is skipped."""
        complete = self._complete()
        for name in self._all():
            if name not in complete:
                self._warn(f"checkpoint {name} is incomplete (it has no {MANIFEST}): ignored")
        for name in reversed(complete):
            path = self._directory / str(name)
            damage = verify(path)
            if not damage:
                return path
            self._warn(f"checkpoint {name} is damaged, trying the one before: {damage}")
        if complete:
            # Starting over in silence would delete days of work with the next save.
            raise UserError(
                f"every checkpoint in {self._directory} is damaged; move that directory away to "
                f"start over"
            )
        return None

    def _metadata(self, path: Path) -> CheckpointMetadata:
        try:
            return CheckpointMetadata.from_json(json.loads((path / META).read_text()))
        except Exception as error:  # whatever foreign contents cause
            raise _unreadable(path, error) from error

    def _describe(self, path: Path) -> tuple[CheckpointMetadata, PyTree]:
        """The metadata, and shape and dtype of every array."""
        metadata = self._metadata(path)
        try:
            found = self._writer.metadata((path / "state").resolve()).item_metadata
            if found is None:
                raise ValueError("it describes no arrays")
        except Exception as error:  # Orbax raises many kinds for foreign contents
            raise _unreadable(path, error) from error
        return metadata, found.tree

    def _read(
        self, path: Path, abstract_state: TrainState
    ) -> tuple[TrainState, CheckpointMetadata]:
        wanted, state = _plain_abstract(abstract_state), (path / "state").resolve()
        metadata, found = self._describe(path)
        # Compared first: a restore that fails leaves reads behind that complain in their threads.
        if difference := _difference(found, wanted):
            raise UserError(f"checkpoint {path.name} does not fit the model: {difference}")
        plain = self._writer.restore(state, args=self._args.StandardRestore(wanted))
        key = jax.random.wrap_key_data(plain["key"])
        return dataclasses.replace(abstract_state, **{**plain, "key": key}), metadata

    def _finish(self, path: Path, metadata: str, keep: set[int]) -> None:
        """Completes a checkpoint, then deletes all others but those of the steps in `keep`.

        Runs in the thread.
        """
        try:
            self._writer.wait_until_finished()
            if jax.process_index() != 0:
                return
            (path / META).write_text(metadata)
            _write_manifest(path)
        except Exception as error:
            raise _unwritten(path, error) from error
        # Only now, since until here an older checkpoint may be the only valid one.
        for other in self._all():
            if str(other) != path.name and other.step not in keep:
                # The manifest goes first: if deletion is cut short, what remains is incomplete
                # rather than damaged.
                old = self._directory / str(other)
                (old / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(old, ignore_errors=True)

    def _all(self) -> list[SaveName]:
        """Directories named like checkpoints, oldest first; no links, which may lead elsewhere."""
        paths = self._directory.glob("*.*")
        names = (SaveName.parse(path.name) for path in paths if not path.is_symlink())
        return sorted(name for name in names if name is not None)

    def _complete(self) -> list[SaveName]:
        return [name for name in self._all() if (self._directory / str(name) / MANIFEST).is_file()]


def verify(path: Path) -> str:
    """Describes the damage of a checkpoint directory, naming a file; empty for a valid one."""
    try:
        text = (path / MANIFEST).read_text()
        files = json.loads(text)["files"]
        if text != _manifest_text(files):
            return f"{MANIFEST} was changed"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    present = _files(path)
    for name in sorted({*files, *present}):
        # Names of the manifest are only compared with those present, so it cannot make a path
        # outside of the directory be opened.
        if name not in present:
            return f"{name} is missing"
        if name not in files:
            return f"{name} does not belong to it"
        if (path / name).is_symlink():
            return f"{name} is a link"
        if _entry(path / name) != files[name]:
            return f"{name} does not match its SHA-256"
    return ""


def _write_manifest(path: Path) -> None:
    """Writes the manifest of a directory once all its files are on the disk.

    Contents are synced before the directories that name them, and both before the manifest gets
    its name: after a power cut at any point, a manifest that exists describes files that exist.
    """
    names = _files(path)
    for name in names:
        _fsync(path / name)
    for directory in {(path / name).parent for name in names} | {path}:
        _fsync(directory)
    draft = path / f"{MANIFEST}.tmp"
    draft.write_text(_manifest_text({name: _entry(path / name) for name in names}))
    _fsync(draft)
    draft.rename(path / MANIFEST)
    _fsync(path)  # makes the rename durable
    _fsync(path.parent)  # makes the checkpoint's own name durable


def _manifest_text(files: Json) -> str:
    """The manifest, which begins with the hash of its own body."""
    body = json.dumps(files, sort_keys=True)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "files": {body}}}'


def _files(path: Path) -> list[str]:
    """Every file below a directory but its manifest; links count as files and are not followed."""
    names = []
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        names += [str((Path(folder) / name).relative_to(path)) for name in [*files, *links]]
    return sorted(name for name in names if name not in (MANIFEST, f"{MANIFEST}.tmp"))


def _entry(path: Path) -> Json:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain_abstract(abstract_state: TrainState) -> dict[str, PyTree]:
    """The abstract state as Orbax restores it: a dict, with the typed key as its uint32 data."""
    data = jax.eval_shape(jax.random.key_data, abstract_state.key)
    sharding = abstract_state.step.sharding  # step and key are both replicated
    return {
        **vars(abstract_state),
        "key": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding),
    }


def _difference(found: PyTree, wanted: PyTree) -> str:
    """Describes the first array in which two trees differ; empty for none."""
    ours, theirs = _arrays(wanted), _arrays(found)
    for name in sorted({*ours, *theirs}):
        one, other = theirs.get(name, "not there"), ours.get(name, "not there")
        if one != other:
            return f"{name} is {one} in the checkpoint and {other} in the model"
    return ""


def _arrays(tree: PyTree) -> dict[str, str]:
    """Dtype and shape of each array by its name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): f"{leaf.dtype} {leaf.shape}" for path, leaf in leaves}


def _evaluated(arrays: Mapping[str, np.ndarray], averages: Iterable[str]) -> dict[str, np.ndarray]:
    """Parameters and collections of a state, each parameter averaged where an average of it is."""
    kept = {p: x for p, x in arrays.items() if p.startswith(("params.", "collections."))}
    for average in averages:
        prefix = f"{average}."
        kept |= {
            f"params.{path.removeprefix(prefix)}": array
            for path, array in arrays.items()
            if path.startswith(prefix)
        }
    return kept


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"checkpoint {path.name} cannot be read: {first_line(error)}")


def _unwritten(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {path} could not be written ({first_line(error)}); earlier ones are intact"
    )
