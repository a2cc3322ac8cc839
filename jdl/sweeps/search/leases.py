"""Who runs which trial: locks among the workers of a directory, heartbeats among all others."""

import contextlib
import fcntl
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

BEAT = 10.0
"""Seconds between two signs of life of a worker."""

GRACE = 60.0
"""Seconds without one after which a worker of another directory is taken for dead."""

OWNER = "worker"
"""The attribute of a trial that names the directory whose worker runs it."""

BEATS = "beats"
"""The attribute of a trial that counts its worker's signs of life."""


class Claims:
    """Sees to it that a trial is run by one worker at a time, and by another if that one dies.

    Workers of one directory lock a file for each trial, which the kernel unlocks when a process
    ends, however it ends. A trial of another directory, or machine, is free once its heart has
    stopped: of several that find it so, the one that is first to make a study of a certain name in
    the storage gets it.

    Args:
      study: whose trials.
      storage: of the study.
      workdir: of this worker; `claims` in it holds the locks.
    """

    def __init__(self, study: Study, storage: BaseStorage, workdir: Path) -> None:
        self._study, self._storage = study, storage
        self._folder = workdir / "claims"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._here = f"{platform.node()}:{workdir.resolve()}"
        self._seen: dict[int, tuple[str, float]] = {}

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """While one worker of the directory decides what to run, the others wait."""
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def claim(self, trial: FrozenTrial) -> "Claim | None":
        """A running trial, if no worker runs it; to be called while `deciding`."""
        owner = trial.user_attrs.get(OWNER)
        if owner != self._here and not self._taken_over(trial):
            return None
        return self.hold(trial.number, trial._trial_id)

    def hold(self, number: int, identity: int) -> "Claim | None":
        """A trial that this worker asked for, or whose owner is dead; None where it is locked."""
        file = (self._folder / f"{number:04d}").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        self._storage.set_trial_user_attr(identity, OWNER, self._here)
        return Claim(self._storage, identity, file)

    def _taken_over(self, trial: FrozenTrial) -> bool:
        """Whether a trial's heart stopped and nobody else was quicker to see it."""
        prefix = f"{self._study.study_name}: trial {trial.number}, owner "
        owners = [s.study_name for s in self._storage.get_all_studies()]
        next_owner = 2 + sum(name.startswith(prefix) for name in owners)
        # Read after the owners: a trial that was taken over since then has a beating heart.
        if not self._stopped(self._storage.get_trial(trial._trial_id)):
            return False
        try:
            self._storage.create_new_study(self._study.directions, f"{prefix}{next_owner}")
        except DuplicatedStudyError:
            return False
        return True

    def _stopped(self, trial: FrozenTrial) -> bool:
        if isinstance(self._storage, RDBStorage) and OWNER in trial.user_attrs:
            return trial._trial_id in self._storage._get_stale_trial_ids(self._study._study_id)
        # Clocks of machines differ: what counts is how long this one has seen the same beat.
        beat = str(trial.user_attrs.get(BEATS))
        now = time.monotonic()
        if self._seen.get(trial.number, ("", 0.0))[0] != beat:
            self._seen[trial.number] = (beat, now)
        return now - self._seen[trial.number][1] > GRACE


class Claim:
    """A trial of this worker's; a thread gives signs of life until it is released."""

    def __init__(self, storage: BaseStorage, identity: int, file: IO[str]) -> None:
        self._storage, self._identity, self._file = storage, identity, file
        self._over = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the trial up, unless that was done."""
        self._over.set()
        self._thread.join()
        self._file.close()

    def _live(self) -> None:
        count = 0
        while not self._over.wait(BEAT):
            count += 1
            self._beat(count)

    def _beat(self, count: int) -> None:
        if isinstance(self._storage, RDBStorage):
            self._storage.record_heartbeat(self._identity)
        else:
            self._storage.set_trial_user_attr(self._identity, BEATS, f"{time.time()} {count}")
