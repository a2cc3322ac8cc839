"""Leases of trials: each is run by one worker at a time, and by another if that worker dies."""

import contextlib
import fcntl
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

HEARTBEAT_INTERVAL = 10.0
"""Seconds between two heartbeats of a worker."""

GRACE_PERIOD = 60.0
"""Seconds without a heartbeat after which a worker of another directory counts as dead."""

OWNER = "worker"
"""Trial attribute: the host and directory of the worker that runs it."""

HEARTBEAT = "heartbeat"
"""Trial attribute: changes with every heartbeat."""


class TrialLeases:
    """Leases trials of a study to the workers of one directory.

    Workers of the same directory hold a file lock per trial, which the kernel releases when a
    process ends, even by SIGKILL. A trial of another directory or machine is free when its
    heartbeats stop: the first worker to create a study with a unique name in the storage, the one
    atomic operation that all of Optuna's storages share, takes it over. Optuna's own
    `heartbeat_interval` exists for `RDBStorage` only, and retries under a new trial number, whose
    run directory has no checkpoint.

    Args:
      study: whose trials are leased.
      storage: of the study.
      workdir: of this worker; the lock files are in its folder `locks`.
    """

    def __init__(self, study: Study, storage: BaseStorage, workdir: Path) -> None:
        self._study, self._storage = study, storage
        self._folder = workdir / "locks"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._owner = f"{platform.node()}:{workdir.resolve()}"
        self._seen: dict[int, tuple[str, float]] = {}

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lock of the directory, so that one worker at a time chooses trials."""
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def take_over(self, trial: FrozenTrial) -> "Lease | None":
        """Leases a running trial whose worker died, else None; call it while `exclusive`."""
        if trial.user_attrs.get(OWNER) != self._owner and not self._won(trial):
            return None
        return self.acquire(trial.number, trial._trial_id)

    def acquire(self, number: int, trial_id: int) -> "Lease | None":
        """Leases a trial unless another worker of the directory holds it."""
        file = (self._folder / f"{number:04d}").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        self._storage.set_trial_user_attr(trial_id, OWNER, self._owner)
        return Lease(self._storage, trial_id, file)

    def _won(self, trial: FrozenTrial) -> bool:
        """Whether a trial's heartbeats stopped and this worker was the first to take it over."""
        prefix = f"{self._study.study_name}: trial {trial.number}, owner "
        owners = [s.study_name for s in self._storage.get_all_studies()]
        next_owner = 2 + sum(name.startswith(prefix) for name in owners)
        # Read after the owners: if another worker took it over since, its heartbeat is new.
        if not self._is_stale(self._storage.get_trial(trial._trial_id)):
            return False
        try:
            self._storage.create_new_study(self._study.directions, f"{prefix}{next_owner}")
        except DuplicatedStudyError:
            return False
        return True

    def _is_stale(self, trial: FrozenTrial) -> bool:
        # Clocks of machines differ, so time counts from when this worker first saw the heartbeat.
        beat, now = str(trial.user_attrs.get(HEARTBEAT)), time.monotonic()
        if self._seen.get(trial.number, ("", 0.0))[0] != beat:
            self._seen[trial.number] = (beat, now)
        return now - self._seen[trial.number][1] > GRACE_PERIOD


class Lease:
    """A trial that this worker runs; a thread sends heartbeats until it is released."""

    def __init__(self, storage: BaseStorage, trial_id: int, file: IO[str]) -> None:
        self._storage, self._trial_id, self._file = storage, trial_id, file
        self._released = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stops the heartbeats and frees the trial; does nothing the second time."""
        self._released.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # told before it was released
            while not self._released.wait(HEARTBEAT_INTERVAL):
                self._beat()

    def _beat(self) -> None:
        self._storage.set_trial_user_attr(self._trial_id, HEARTBEAT, time.time())
