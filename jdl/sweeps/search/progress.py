"""Progress lines of a search."""

import time
from collections.abc import Callable

from optuna.study import Study

from jdl.sweeps.search.study import TrialRecord, best_record, trial_records
from jdl.sweeps.search.worker import StudyConfig
from jdl.typing import Json


class SearchProgress:
    """Prints a line for each finished trial, with the best so far and the time left.

    Args:
      study: of the trials.
      config: its metric and number of trials.
      notify: prints a line.
    """

    def __init__(self, study: Study, config: StudyConfig, notify: Callable[[str], None]) -> None:
        self._study, self._config, self._notify = study, config, notify
        self._shown = {each.number for each in trial_records(study) if each.state != "running"}
        self._resumed, self._started = len(self._shown), time.perf_counter()
        if self._shown:
            notify(f"resuming a study of {len(self._shown)} trials")

    def show(self) -> bool:
        """Prints trials that finished since the last call; returns whether there are any."""
        found = [each for each in trial_records(self._study) if each.state != "running"]
        new = [each for each in found if each.number not in self._shown]
        leader = best_record(self._study)
        for each in new:
            self._shown.add(each.number)
            self._notify(self._line(each, leader))
        return bool(new)

    def _line(self, trial: TrialRecord, leader: TrialRecord | None) -> str:
        values = ", ".join(f"{path} {_short(value)}" for path, value in trial.point.items())
        score = f" {self._config.metric} {trial.value:.4f}" if trial.value is not None else ""
        text = f"trial {trial.number} {trial.state}:{score} with {values}"
        if trial.error:
            text += f" ({trial.error})"
        if leader is not None:
            text += f"; best {leader.value:.4f} in trial {leader.number}"
        done, total = len(self._shown), self._config.num_trials
        per_trial = (time.perf_counter() - self._started) / max(done - self._resumed, 1)
        return f"{text}; {done} of {total} done, {per_trial * max(0, total - done):.0f} s left"


def _short(value: Json) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
