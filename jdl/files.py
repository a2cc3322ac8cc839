"""Files of a run directory: their names, their typed contents, and writing JSON safely.

All JSON is strict: a number that is not finite is written as `null`, since `NaN` and `Infinity` are
not JSON and many readers refuse them. Readers of metrics get NaN back in its place.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jdl.errors import UserError
from jdl.typing import Json

Record = TypeVar("Record", bound="ExperimentRecord | DataRecord | CheckpointMetadata")


@dataclass(frozen=True)
class RunDirectory:
    """Paths and contents of the files of a run directory.

    `experiment.json` is written first: a directory is that of a run once it is there. `result.json`
    is written last: the run has finished once it is there.
    """

    path: Path

    @property
    def experiment(self) -> Path:
        """Name, length and settings of the run: an `ExperimentRecord`."""
        return self.path / "experiment.json"

    @property
    def script(self) -> Path:
        """The experiment file that the run was started from; absent when started from Python."""
        return self.path / "experiment.py"

    @property
    def objects(self) -> Path:
        """Import paths and fields of an experiment that was started from Python."""
        return self.path / "objects.json"

    @property
    def overrides(self) -> Path:
        """Changes to the experiment file, by path."""
        return self.path / "overrides.json"

    @property
    def environment(self) -> Path:
        """`versions`, `git_commit`, `devices`, `flags`, and `data` with a fingerprint per split."""
        return self.path / "environment.json"

    @property
    def data(self) -> Path:
        """What prediction needs to know of the training data: a `DataRecord`."""
        return self.path / "data.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the run's data, if it has one."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """Training metrics and scores, a row per line: step, epoch, split, metrics, timing."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of a `CheckpointStore`."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """Final metrics by split, `params_sha256`, and costs."""
        return self.path / "result.json"

    @property
    def audit(self) -> Path:
        """Scores by group of the last `jdl audit`."""
        return self.path / "audit.json"

    @property
    def robustness(self) -> Path:
        """Scores under attacks and corruptions of the last `jdl robustness`."""
        return self.path / "robustness.json"

    @property
    def calibration(self) -> Path:
        """The fitted calibration and conformal sets of the run's predictions, if there are any."""
        return self.path / "calibration.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains the run."""
        return self.path / ".lock"

    @property
    def summary(self) -> Path:
        """Statistics over seeds, in the directory that holds one run per seed."""
        return self.path / "summary.json"

    @property
    def study(self) -> Path:
        """Space and settings of a hyperparameter search, in the directory of the search."""
        return self.path / "study.json"

    @property
    def trials(self) -> Path:
        """The trials of a hyperparameter search, one per line."""
        return self.path / "study.jsonl"

    def samples(self, folder: str = "samples") -> Path:
        """The directory of a `Sample` hook: `step-NUMBER.png`, `.txt` or `.wav`."""
        return self.path / folder

    def predictions(self, split: str) -> Path:
        """Predicted texts of a split, one per line, of tasks that score them on the host."""
        return self.path / f"predictions.{split}.txt"

    def read_experiment(self) -> "ExperimentRecord":
        """The record of the run.

        Raises:
          UserError: this is no run directory, or the record cannot be read.
        """
        value = read_json(self.experiment)
        if value is None:
            raise UserError(f"{self.path} is no run directory (it has no {self.experiment.name})")
        return _record(ExperimentRecord, value, str(self.experiment))

    def read_data(self) -> "DataRecord":
        """The record of the run's data.

        Raises:
          UserError: there is none, or it cannot be read.
        """
        value = read_json(self.data)
        if value is None:
            raise UserError(f"{self.path} has no checkpoint yet: train it first")
        return _record(DataRecord, value, str(self.data))

    def read_result(self) -> dict[str, Json] | None:
        """The result, or None where the run has not finished."""
        return _with_metrics(read_json(self.result))

    def read_summary(self) -> dict[str, Json] | None:
        """The statistics over seeds, or None where the directory has none."""
        return _with_metrics(read_json(self.summary))


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """The contents of `experiment.json`."""

    experiment: str  # name of its file, without .py
    total_steps: int  # batches that the whole run consumes
    fields: dict  # every setting by its path, as `jdl.config.overrides.flatten` gives them

    def to_json(self) -> dict[str, Json]:
        """The JSON object to write."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The contents of `data.json`: with it a run predicts where its data is not."""

    examples: dict  # number of examples by split
    arrays: dict  # shape and dtype of each array of an example, after the host transforms
    fitted: dict  # what `Data.fit` returned: scaling, vocabulary, class names

    def to_json(self) -> dict[str, Json]:
        """The JSON object to write."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """The contents of a checkpoint's `meta.json`: all that a resumed run needs besides arrays."""

    step: int  # batches consumed
    total_steps: int = 0  # batches of the whole run when it was saved
    hooks: dict = field(default_factory=dict)  # each callback's state, by kind and count
    pending: dict | None = None  # [total, count] by metric, where hooks have yet to see the step
    best_step: int | None = None  # the step whose weights the run ends with; None: the last
    stop_reason: str = ""  # why a hook ended the run; empty where none did
    averages: list = field(default_factory=list)  # paths of averaged parameters within the state
    seconds: float | int = 0.0  # wall time since training began, over all resumed parts
    training_seconds: float | int = 0.0  # of these, in training steps
    input_seconds: float | int = 0.0  # of these, waiting for batches
    compile_seconds: float | int = 0.0

    def to_json(self) -> dict[str, Json]:
        """The JSON object to write."""
        # A checkpoint restores exactly: `null` for NaN would lose what a hook keeps.
        return _map_floats(dataclasses.asdict(self), lambda number: {FLOAT: repr(number)})

    @classmethod
    def from_json(cls, value: Json) -> "CheckpointMetadata":
        """The inverse of `to_json`.

        Raises:
          UserError: a key is unknown, missing, or of another type.
        """
        return _record(cls, _restore_floats(value), "meta.json")


FLOAT = "float"
"""The only key of an object that stands for a number that is not finite in `meta.json`."""


class MetricsLog:
    """Appends rows to `metrics.jsonl`, each flushed at once so that others can follow the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a")

    def append(self, row: Mapping[str, Json]) -> None:
        """Adds a row."""
        self._file.write(to_json(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, up to the first torn line; metrics that are `null` as NaN."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(_with_metrics(json.loads(line)))
        except ValueError:
            break
    return rows


def truncate_rows(path: Path, step: int) -> None:
    """Drops the rows after a step, and torn lines."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))


def to_json(value: Json, indent: int | None = None) -> str:
    """Strict JSON text; numbers that are not finite become `null`."""
    return json.dumps(_map_floats(value, lambda number: None), indent=indent, allow_nan=False)


def json_value(value: Json) -> Json:
    """The value that reading its JSON gives: lists for tuples, None for numbers not finite."""
    return json.loads(to_json(value))


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or None where there is none.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, value: Json) -> None:
    """Replaces a file by indented JSON."""
    write_atomically(path, to_json(value, indent=2) + "\n")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a file by texts, one per line; line breaks within a text become spaces."""
    write_atomically(path, "".join(" ".join(line.split("\n")) + "\n" for line in lines))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file; a reader finds either the old content or the new one, never a part."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        # Before the rename: a power cut could otherwise leave the new name on an empty file.
        os.fsync(file.fileno())
    draft.replace(path)


def _record(kind: type[Record], value: Json, where: str) -> Record:
    """A record from its JSON object; refuses unknown, missing and ill-typed keys."""
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise UserError(f"{where} contains no JSON object")
    if odd := sorted(fields.keys() ^ value.keys()):
        problem = "lacks the key" if odd[0] in fields else "has the unknown key"
        raise UserError(f"{where} {problem} {odd[0]!r}: another version of jdl wrote it")
    for name, each in fields.items():
        if not isinstance(value[name], each.type):  # pyright: ignore[reportArgumentType]
            raise UserError(f"{where}: {name!r} must not be {value[name]!r:.60}")
    return kind(**value)


def _map_floats(value: Json, replace: Any) -> Json:
    """The value with each number that is not finite replaced."""
    if isinstance(value, float):
        return value if math.isfinite(value) else replace(value)
    if isinstance(value, Mapping):
        return {name: _map_floats(each, replace) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_floats(each, replace) for each in value]
    return value


def _restore_floats(value: Json) -> Json:
    if isinstance(value, dict):
        if value.keys() == {FLOAT}:
            return float(value[FLOAT])
        return {name: _restore_floats(each) for name, each in value.items()}
    return [_restore_floats(each) for each in value] if isinstance(value, list) else value


def _with_metrics(value: Any) -> Any:
    """The value with NaN for each `null` below its key `metrics`."""

    def restore(scores: Any) -> Any:
        if isinstance(scores, dict):
            return {name: restore(each) for name, each in scores.items()}
        return math.nan if scores is None else scores

    if isinstance(value, dict) and "metrics" in value:
        return {**value, "metrics": restore(value["metrics"])}
    return value
