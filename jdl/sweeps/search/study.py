"""Optuna studies and storages: opening them, and reading their trials."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError

from jdl.errors import UserError, first_line
from jdl.files import RunDirectory, json_value, to_json, write_atomically
from jdl.sweeps.search.samplers import quiet_optuna
from jdl.trainer.record import differences
from jdl.typing import Json

JOURNAL = "study.journal"
"""The default storage: a file in the study's directory."""

IDENTITY = "jdl"
"""Study attribute: experiment, space, metric and sampler, which a resumed search must match."""


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """A trial as `study.jsonl` records it."""

    number: int  # of the trial, and of its directory
    state: Literal["complete", "pruned", "failed", "running"]
    value: float | None  # the metric, of a pruned trial the last one reported; None: there is none
    point: Mapping[str, Json]  # values by path
    seconds: float | None  # of training
    error: str | None  # why it failed


def open_storage(url: str | None, workdir: Path) -> BaseStorage:
    """Opens the storage of a study.

    Args:
      url: of a database (`sqlite:///FILE`, `postgresql://...`) or of Optuna's gRPC proxy
        (`grpc://HOST:PORT`); None for a journal file in the directory.
      workdir: the study's directory, created for a journal.

    Raises:
      UserError: the storage cannot be reached, or a package is missing.
    """
    try:
        with quiet_optuna():
            if url is None:
                workdir.mkdir(parents=True, exist_ok=True)
                backend = JournalFileBackend(str(workdir / JOURNAL))
                return optuna.storages.JournalStorage(backend)
            return _proxy(url) if url.startswith("grpc://") else _database(url)
    except ImportError as error:
        raise UserError(f"the storage {url} needs a package that is missing: {error}") from error
    except Exception as error:
        place = url or workdir / JOURNAL
        raise UserError(f"the storage {place} cannot be reached: {first_line(error)}") from error


def _database(url: str) -> BaseStorage:
    """Opens a database; if several workers create its tables at once, all but one have to retry."""
    for left in reversed(range(3)):
        try:
            return optuna.storages.RDBStorage(url)
        except (IntegrityError, OperationalError):
            if not left:
                raise
            time.sleep(1)
    raise AssertionError


def _proxy(url: str) -> BaseStorage:
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError("write it as grpc://HOST:PORT")
    storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    storage.wait_server_ready(timeout=10)
    return storage


def open_study(
    storage: BaseStorage,
    name: str,
    identity: Mapping[str, Json],
    direction: Literal["minimize", "maximize"],
    sampler: Any,
    pruner: Any,
) -> OptunaStudy:
    """Loads the study of that name, or creates it.

    Raises:
      UserError: the stored one has another experiment, space, metric or sampler.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner,
        load_if_exists=True,
    )  # fmt: skip
    wanted = json_value(identity)
    found = study.user_attrs.get(IDENTITY)
    if found is None:
        study.set_user_attr(IDENTITY, wanted)
    elif changed := differences(found, wanted):
        raise UserError(
            f"the storage holds another study {name!r} ({'; '.join(changed)}): choose "
            f"another --workdir or --study"
        )
    return study


def trial_records(study: OptunaStudy) -> list[TrialRecord]:
    """The trials of a study, without points that violated a constraint."""
    found = study.get_trials(deepcopy=False)
    return [_trial(each) for each in found if POINT in each.user_attrs]


def write_trials(study: OptunaStudy, workdir: Path) -> None:
    """Writes `study.jsonl`, one line per trial; call it while `exclusive`."""
    lines = [to_json(dataclasses.asdict(each)) + "\n" for each in trial_records(study)]
    write_atomically(RunDirectory(workdir).trials, "".join(lines))


def best_record(study: OptunaStudy) -> TrialRecord | None:
    """The complete trial with the best value, the first of equals."""
    done = [
        each for each in trial_records(study) if each.state == "complete" and each.value is not None
    ]
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return min(done, key=lambda each: (sign * (each.value or 0.0), each.number), default=None)


POINT = "point"
"""Trial attribute: values by path."""
ERROR = "error"
"""Trial attribute: why it failed."""
SECONDS = "seconds"
"""Trial attribute: seconds of training."""


def _trial(found: FrozenTrial) -> TrialRecord:
    states: dict[TrialState, Any] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    return TrialRecord(
        number=found.number,
        state=states.get(found.state, "running"),
        value=found.value if found.state.is_finished() else None,
        point=found.user_attrs[POINT],
        seconds=found.user_attrs.get(SECONDS),
        error=found.user_attrs.get(ERROR),
    )
