"""How a search goes on, said line by line."""

import time
from collections.abc import Callable

from optuna.study import Study

from jdl.sweeps.search.study import Trial, best, trials
from jdl.sweeps.search.worker import Search
from jdl.typing import Json


class Progress:
    """Says what came of each trial once it has ended, what is best so far and how long it takes.

    Args:
      study: that goes on.
      search: what it is to have.
      notify: called.
    """

    def __init__(self, study: Study, search: Search, notify: Callable[[str], None]) -> None:
        self._study, self._search, self._print = study, search, notify
        self._said = {each.number for each in trials(study) if each.state != "running"}
        self._before, self._begun = len(self._said), time.perf_counter()
        if self._said:
            notify(f"going on with a study of {len(self._said)} trials")

    def show(self) -> bool:
        """Says what is new; whether anything is."""
        found = trials(self._study)
        new = [each for each in found if each.state != "running" and each.number not in self._said]
        leader = best(self._study)
        for each in new:
            self._said.add(each.number)
            self._print(self._line(each, leader))
        return bool(new)

    def _line(self, trial: Trial, leader: Trial | None) -> str:
        values = ", ".join(f"{path} {_short(value)}" for path, value in trial.point.items())
        score = f" {self._search.metric} {trial.value:.4f}" if trial.value is not None else ""
        text = f"trial {trial.number} {trial.state}:{score} with {values}"
        if trial.error:
            text += f" ({trial.error})"
        if leader is not None:
            text += f"; best {leader.value:.4f} in trial {leader.number}"
        here = len(self._said) - self._before
        left = max(0, self._search.trials - len(self._said))
        seconds = (time.perf_counter() - self._begun) / max(here, 1) * left
        return f"{text}; {len(self._said)} of {self._search.trials} done, {seconds:.0f} s left"


def _short(value: Json) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
