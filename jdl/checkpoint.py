"""Checkpoints: Orbax arrays and one JSON file, vouched for by a manifest that is written last.

A checkpoint is a directory `STEP.N`, N counting the saves of that step. It exists once
`manifest.json` does, which holds size and SHA-256 of every other file: a save that was cut short
has none, and damage of any later kind is found before anything is restored. Reading touches
arrays and JSON only.
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
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jdl.errors import UserError, first_line
from jdl.paths import path_name
from jdl.state import TrainState
from jdl.typing import Json, PyTree

MANIFEST = "manifest.json"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
      directory: where they lie.
      warn: called with a line about each checkpoint that is skipped.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None] = print) -> None:
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(
            logging.CRITICAL
        )  # errors are raised here, in a sentence
        self._directory, self._warn = directory, warn
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._args = ocp.args
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return sorted({step for step, _ in map(_order, self._complete())})

    def save(self, step: int, state: TrainState, meta: Json, keep: Iterable[int]) -> None:
        """Begins to write a checkpoint; returns once the state may be changed.

        The previous save is waited for first. When this one is complete, those of steps that are
        not in `keep` are deleted.

        Raises:
          UserError: the previous one could not be written.
        """
        self.wait()
        path = self._next(step)
        try:
            if jax.process_index() == 0:
                path.mkdir(parents=True)
            self._writer.save(
                (path / "state").resolve(), args=self._args.StandardSave(_plain(state))
            )
        except Exception as error:
            raise _unwritten(path, error) from error
        # As text, since what the hooks gave may change while the thread writes.
        self._pending = self._thread.submit(self._finish, path, json.dumps(meta), {step, *keep})

    def wait(self) -> None:
        """Waits until the last save is complete, on all processes.

        Raises:
          UserError: it could not be written; earlier ones are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoint")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Json]:
        """The checkpoint of a step, verified.

        Args:
          step: its step.
          like: shapes, dtypes and shardings of the state.

        Raises:
          UserError: it is not there or damaged.
        """
        return self._read(self._of_step(step), like)

    def restore_latest(self, like: TrainState) -> tuple[TrainState, Json] | None:
        """The newest checkpoint that is whole, or None where none was ever completed.

        Raises:
          UserError: there are some, and all are damaged.
        """
        path = self._latest()
        return None if path is None else self._read(path, like)

    def evaluation_step(self) -> int | None:
        """The step whose weights the run is scored with; None where no save was ever completed.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        path = self._evaluation_path()
        return None if path is None else _order(path)[0]

    def evaluation_arrays(self) -> dict[str, np.ndarray] | None:
        """The arrays that the run is scored with, by path; None where no save was ever completed.

        Those are `params`, averaged where the optimizer averages, and `collections`: of the best
        checkpoint where the run goes back to that, else of the newest.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        path = self._evaluation_path()
        if path is None:
            return None
        tree = self._describe(path)[1]
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
        args = self._args.StandardRestore(like)
        state = self._writer.restore((path / "state").resolve(), args=args)
        return _scored({path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)})

    def close(self) -> None:
        """Waits for the last save and lets go of the threads."""
        try:
            if self._pending is not None:
                self._pending.result()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def _of_step(self, step: int) -> Path:
        paths = [path for path in self._complete() if _order(path)[0] == step]
        if not paths:
            raise UserError(f"{self._directory} has no checkpoint of step {step}")
        if damage := verify(paths[-1]):
            raise UserError(f"checkpoint {paths[-1].name} is damaged: {damage}")
        return paths[-1]

    def _evaluation_path(self) -> Path | None:
        """The best checkpoint where the run goes back to that, else the newest that is whole."""
        path = self._latest()
        best = None if path is None else self._describe(path)[0].get("best_step")
        return path if best is None else self._of_step(best)

    def _latest(self) -> Path | None:
        """The newest checkpoint that is whole; says which are passed over."""
        complete = self._complete()
        for path in self._all():
            if path not in complete:
                self._warn(f"checkpoint {path.name} is incomplete (it has no {MANIFEST}): ignored")
        for path in reversed(complete):
            damage = verify(path)
            if not damage:
                return path
            self._warn(f"checkpoint {path.name} is damaged, trying the one before: {damage}")
        if complete:
            raise UserError(
                f"every checkpoint in {self._directory} is damaged; move that directory away to "
                f"start over"
            )
        return None

    def _describe(self, path: Path) -> tuple[Json, PyTree]:
        """What `meta.json` holds, and shape and dtype of every array."""
        try:
            meta = json.loads((path / "meta.json").read_text())
            if not isinstance(meta, dict):
                raise ValueError("meta.json holds no object")
            found = self._writer.metadata((path / "state").resolve()).item_metadata
            if found is None:
                raise ValueError("it describes no arrays")
        except Exception as error:  # whatever Orbax makes of foreign contents
            raise UserError(
                f"checkpoint {path.name} cannot be read: {first_line(error)}"
            ) from error
        return meta, found.tree

    def _read(self, path: Path, like: TrainState) -> tuple[TrainState, Json]:
        wanted, state = _plain_like(like), (path / "state").resolve()
        meta, found = self._describe(path)
        # Compared first: a restore that fails leaves reads behind that complain in their threads.
        if difference := _difference(found, wanted):
            raise UserError(f"checkpoint {path.name} does not fit the model: {difference}")
        plain = self._writer.restore(state, args=self._args.StandardRestore(wanted))
        key = jax.random.wrap_key_data(plain["key"])
        return dataclasses.replace(like, **{**plain, "key": key}), meta

    def _finish(self, path: Path, meta: str, keep: set[int]) -> None:
        """Completes a checkpoint, then deletes what is no longer wanted; runs in the thread."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() != 0:
                return
            (path / "meta.json").write_text(meta)
            _write_manifest(path)
        except Exception as error:
            raise _unwritten(path, error) from error
        for other in self._all():
            stale = _order(other) < _order(path) and _order(other)[0] == _order(path)[0]
            if other != path and (stale or _order(other)[0] not in keep):
                # Without its manifest it is no checkpoint any more, should deletion be cut short.
                (other / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(other, ignore_errors=True)

    def _next(self, step: int) -> Path:
        taken = [_order(path)[1] for path in self._all() if _order(path)[0] == step]
        count = max(taken, default=-1) + 1
        if jax.process_count() > 1:
            count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
        return self._directory / f"{step}.{count}"

    def _all(self) -> list[Path]:
        found = [
            path
            for path in self._directory.glob("*.*")
            if re.fullmatch(r"\d+\.\d+", path.name) and not path.is_symlink()
        ]
        return sorted(found, key=_order)

    def _complete(self) -> list[Path]:
        return [path for path in self._all() if (path / MANIFEST).is_file()]


def verify(path: Path) -> str:
    """What is wrong with a checkpoint directory, naming a file; empty where nothing is."""
    try:
        text = (path / MANIFEST).read_text()
        files = json.loads(text)["files"]
        if text != _manifest_text(files):
            return f"{MANIFEST} was changed"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    present = _files(path)
    for name in sorted({*files, *present}):
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
    """Vouches for all files of a directory, once they are on the disk."""
    names = _files(path)
    for name in names:
        _fsync(path / name)
    for directory in {(path / name).parent for name in names} | {path}:
        _fsync(directory)
    draft = path / f"{MANIFEST}.tmp"
    draft.write_text(_manifest_text({name: _entry(path / name) for name in names}))
    _fsync(draft)
    draft.rename(path / MANIFEST)
    _fsync(path)
    _fsync(path.parent)


def _manifest_text(files: Json) -> str:
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


def _order(path: Path) -> tuple[int, int]:
    step, _, count = path.name.partition(".")
    return int(step), int(count)


def _plain(state: TrainState) -> dict[str, PyTree]:
    """The state as Orbax takes it: in a dict, the typed key as its numbers."""
    return {**vars(state), "key": jax.random.key_data(state.key)}


def _plain_like(like: TrainState) -> dict[str, PyTree]:
    data = jax.eval_shape(jax.random.key_data, like.key)
    sharding = like.step.sharding  # both are whole on every device
    return {
        **vars(like),
        "key": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding),
    }


def _difference(found: PyTree, wanted: PyTree) -> str:
    """The first array that one tree of arrays has otherwise than the other; empty for none."""
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


def _scored(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters and collections of a state, the parameters averaged where `WeightAverage` is."""
    kept = {p: x for p, x in arrays.items() if p.startswith(("params.", "collections."))}
    for path, array in arrays.items():
        root, average, name = path.partition(".mean.")
        if path.startswith("opt_state.") and average and f"{root}.steps" in arrays:
            kept[f"params.{name}"] = array
    return kept


def _unwritten(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {path} could not be written ({first_line(error)}); earlier ones are intact"
    )
