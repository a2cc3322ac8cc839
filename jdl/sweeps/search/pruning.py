"""The hook that reports a trial's metric to Optuna and stops it when it is pruned."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from jdl.hooks import Callback, Hook
from jdl.typing import Event, RunContext

PRUNED = "pruned"
"""Trial attribute: whether the pruner stopped it."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Hook):
    """Reports a metric to Optuna whenever it is logged, and stops the run if it is pruned."""

    metric: str  # SPLIT.NAME
    trial: optuna.Trial = dataclasses.field(repr=False)

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        return _Pruning(run, self)


class _Pruning(Callback):
    def __init__(self, run: RunContext, config: Pruning) -> None:
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
            self._run.stop(
                f"pruned: other trials had a better {self._split}.{self._name} at this step"
            )
