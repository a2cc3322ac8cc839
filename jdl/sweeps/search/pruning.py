"""The hook that tells a study how a trial goes, and stops it where that is hopeless."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from jdl.hooks import Hook, Listener
from jdl.typing import Event, RunContext

PRUNED = "pruned"
"""The attribute of a trial that was stopped early."""


@dataclass(frozen=True, kw_only=True)
class Report(Hook):
    """Reports a score to a study whenever it is logged, and stops where the pruner says so."""

    metric: str  # SPLIT.NAME of the score
    trial: optuna.Trial = dataclasses.field(repr=False)  # to which it is reported

    def build(self, run: RunContext) -> Listener:
        """See `Hook.build`."""
        return _Report(run, self)


class _Report(Listener):
    def __init__(self, run: RunContext, config: Report) -> None:
        self._run, self._trial = run, config.trial
        self._split, _, self._name = config.metric.partition(".")
        study, number = config.trial.study, config.trial.number
        (found,) = [each for each in study.get_trials(deepcopy=False) if each.number == number]
        self._known = set(found.intermediate_values)
        self._fresh: float | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        if row["split"] == self._split:
            self._fresh = row["metrics"].get(self._name)

    def __call__(self, event: Event) -> None:
        if self._fresh is None:
            return
        fresh, self._fresh = self._fresh, None
        if event.step not in self._known:
            self._known.add(event.step)
            self._trial.report(fresh, event.step)
        if event.step < self._run.steps and self._trial.should_prune():
            self._trial.set_user_attr(PRUNED, True)
            self._run.stop(f"pruned: others had a better {self._split}.{self._name} by then")
