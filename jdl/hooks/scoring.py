"""Hooks that evaluate the model and act on its metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jdl.errors import UserError, nearest
from jdl.hooks.base import Callback, Hook
from jdl.metrics import scalars
from jdl.typing import Event, Json, RunContext


@dataclass(frozen=True, kw_only=True)
class Evaluate(Hook):
    """Evaluates whole splits during training; skips `validation` if the data has none."""

    every: int | None = None  # steps between evaluations; None: one epoch
    splits: tuple[str, ...] = ("validation",)  # what to evaluate; never test

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"Evaluate needs every >= 1 steps, not {self.every}")
        if "test" in self.splits:
            raise UserError("Evaluate may not read the test split: it is read once, at the end")

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`.

        Raises:
          UserError: a split other than `validation` does not exist.
        """
        for split in self.splits:
            if split not in (*run.splits, "validation"):
                known = ", ".join(run.splits)
                hint = nearest(split, run.splits)
                raise UserError(f"Evaluate: no split {split!r} (there are {known}){hint}")
        return _Evaluate(run, self.every or run.steps_per_epoch, self.splits)


class _Evaluate(Callback):
    def __init__(self, run: RunContext, every: int, splits: tuple[str, ...]) -> None:
        self._run, self._every = run, every
        self._splits = [split for split in splits if split in run.splits]

    def due(self, step: int) -> bool:
        return bool(self._splits) and (step % self._every == 0 or step == self._run.steps)

    def __call__(self, event: Event) -> None:
        if not self.due(event.step):
            return
        for split in self._splits:
            metrics = scalars(self._run.evaluate(split))
            self._run.log(
                {
                    "step": event.step,
                    "epoch": event.epoch,
                    "split": split,
                    "metrics": metrics,
                    "timing": event.timing,
                }
            )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(Hook):
    """Stops when a metric has not improved for a while, and restores the best weights.

    Needs an `Evaluate` of the split before it among the hooks (Prechelt, 1998).
    """

    metric: str = "validation.loss"  # SPLIT.NAME
    patience: int = 3  # evaluations without improvement that end the run
    min_delta: float = 0.0  # a smaller change is no improvement
    mode: Literal["min", "max"] | None = None  # direction; None: as the metric defines it

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"EarlyStopping needs patience >= 1, not {self.patience}")

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        score = Score.parse(self.metric, self.mode, run, self)
        return _EarlyStopping(run, self, score)


class _EarlyStopping(Callback):
    def __init__(self, run: RunContext, config: EarlyStopping, score: "Score") -> None:
        self._run, self._config, self._score = run, config, score
        self._best = math.inf
        self._waited = 0
        self._fresh: float | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        self._fresh = self._score.read(row) if self._score.matches(row) else self._fresh

    def __call__(self, event: Event) -> None:
        if self._fresh is None:
            return
        fresh, self._fresh = self._fresh, None
        if fresh < self._best - self._config.min_delta:
            self._best, self.best_step, self._waited = fresh, event.step, 0
            self._run.save()
            return
        self._waited += 1
        if self._waited >= self._config.patience:
            self._run.stop(
                f"{self._config.metric} has not improved for {self._waited} evaluations; the best "
                f"was at step {self.best_step}"
            )

    def state(self) -> Json:
        best = None if self.best_step is None else self._best
        return {"best": best, "best_step": self.best_step, "waited": self._waited}

    def restore(self, state: Json) -> None:
        self._best = math.inf if state["best"] is None else state["best"]
        self.best_step, self._waited = state["best_step"], state["waited"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Hook):
    """Saves checkpoints, from which the run can resume; the last step is always saved."""

    every: int | None = None  # steps between saves; None: one epoch
    keep: int = 2  # number of latest checkpoints to keep; older ones are deleted
    best: int = 0  # number of best checkpoints to keep as well
    metric: str = "validation.loss"  # SPLIT.NAME that ranks them
    mode: Literal["min", "max"] | None = None  # direction; None: as the metric defines it
    asynchronous: bool | None = None  # overlap writing with training; None: only on accelerators

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"Checkpoint needs every >= 1 steps, not {self.every}")
        if self.keep < 1 or self.best < 0:
            raise UserError(
                f"Checkpoint needs keep >= 1 and best >= 0, not {self.keep} and {self.best}"
            )

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`."""
        score = Score.parse(self.metric, self.mode, run, self) if self.best else None
        return _Checkpoint(run, self, self.every or run.steps_per_epoch, score)


class _Checkpoint(Callback):
    def __init__(
        self, run: RunContext, config: Checkpoint, every: int, score: "Score | None"
    ) -> None:
        self._run, self._config, self._every, self._score = run, config, every, score
        self._fresh: float | None = None
        self._last: list[int] = []
        self._best: list[tuple[float, int]] = []

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def row(self, row: Mapping[str, Any]) -> None:
        if self._score is not None and self._score.matches(row):
            self._fresh = self._score.read(row)

    def __call__(self, event: Event) -> None:
        if self._fresh is not None:
            found = [(self._fresh, event.step)] if math.isfinite(self._fresh) else []
            ranked = sorted([*self._best, *found])[: self._config.best]
            if ranked != self._best:
                self._run.save(self._config.asynchronous)
            self._best, self._fresh = ranked, None
        if self.due(event.step):
            self._last = [*self._last, event.step][-self._config.keep :]
            self._run.save(self._config.asynchronous)
        self.protected_steps = [*self._last, *(step for _, step in self._best)]

    def state(self) -> Json:
        return {"last": self._last, "best": self._best}

    def restore(self, state: Json) -> None:
        self._last = list(state["last"])
        self._best = [(float(score), step) for score, step in state["best"]]
        self.protected_steps = [*self._last, *(step for _, step in self._best)]


@dataclass(frozen=True)
class Score:
    """One metric of a split's rows, with its sign changed so that lower is better."""

    split: str
    name: str
    sign: float = field(default=1.0)

    @classmethod
    def parse(
        cls, metric: str, mode: Literal["min", "max"] | None, run: RunContext, hook: Hook
    ) -> "Score":
        """Parses `SPLIT.NAME`.

        Raises:
          UserError: it has another form, no `Evaluate` before the hook scores that split, or it
            is unknown whether higher is better.
        """
        split, _, name = metric.partition(".")
        if not name:
            raise UserError(f"a metric is SPLIT.NAME, such as validation.loss, not {metric!r}")
        hooks = run.experiment.hooks
        before = hooks[: hooks.index(hook)] if hook in hooks else hooks
        scored = {s for each in before if isinstance(each, Evaluate) for s in each.splits}
        if split not in run.splits or split not in scored:
            raise UserError(
                f"{metric} is never scored: that needs a split {split!r}, and among the hooks an "
                f"Evaluate of it before {type(hook).__name__}"
            )
        higher = run.higher_is_better(name) if mode is None else mode == "max"
        if higher is None:
            raise UserError(
                f"{type(hook).__name__}: whether a higher {metric} is better is unknown: set mode "
                f"to min or max"
            )
        return cls(split, name, -1.0 if higher else 1.0)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row belongs to this split."""
        return row["split"] == self.split

    def read(self, row: Mapping[str, Any]) -> float:
        """Returns the metric in a row, lower is better.

        Raises:
          UserError: the task has no such metric.
        """
        if self.name not in row["metrics"]:
            known = ", ".join(row["metrics"])
            raise UserError(
                f"{self.split} has no metric {self.name!r} that is a number (it has {known})"
            )
        score = row["metrics"][self.name]
        # A model that diverged is never the best.
        return self.sign * score if math.isfinite(score) else math.inf
