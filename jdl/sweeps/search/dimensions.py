"""What a value may be: typed dimensions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jdl.config.overrides import flatten
from jdl.errors import UserError
from jdl.typing import Json


@runtime_checkable
class Trial(Protocol):
    """What gives a dimension its value: an `optuna.Trial`."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int) -> int:
        """An integer."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some labels."""
        ...


@dataclass(frozen=True)
class Int:
    """Integers from `low` to `high`, both included, `step` apart."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.step)

    def values(self) -> list[Any]:
        """All of them."""
        return list(range(self.low, self.high + 1, self.step))

    def ends(self) -> list[Any]:
        """The first and the last."""
        return [self.low, self.values()[-1]]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value for a trial."""
        return trial.suggest_int(name, *self.ends(), step=self.step)


@dataclass(frozen=True)
class Uniform:
    """Numbers from `low` to `high`, each as likely; with a `step` those that it leads to."""

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.step)

    def values(self) -> list[Any]:
        """All of them.

        Raises:
          UserError: there is no step.
        """
        if self.step is None:
            raise UserError(f"{self} has no step, so a grid cannot list its values")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + index * self.step, 12) for index in range(count)]

    def ends(self) -> list[Any]:
        """The first and the last."""
        return [self.low, self.high if self.step is None else self.values()[-1]]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value for a trial."""
        return trial.suggest_float(name, *self.ends(), step=self.step)


@dataclass(frozen=True)
class LogUniform:
    """Positive numbers from `low` to `high`, each order of magnitude as likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)
        if self.low <= 0:
            raise UserError(f"{self}: a logarithmic range holds positive numbers only")

    def values(self) -> list[Any]:
        """Raises a UserError: a grid cannot list them."""
        raise UserError(f"{self} has no step, so a grid cannot list its values")

    def ends(self) -> list[Any]:
        """The first and the last."""
        return [self.low, self.high]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value for a trial."""
        return trial.suggest_float(name, self.low, self.high, log=True)


@dataclass(frozen=True, init=False)
class Choice:
    """One of some values, of which no more is known than that they differ."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)
        if not options:
            raise UserError("Choice() has nothing to choose from")
        if len({str(label) for label in self.labels}) < len(options):
            raise UserError(f"{self}: an option is there twice")

    @property
    def labels(self) -> list[Json]:
        """The options as a study keeps them: numbers and texts as they are, others as text."""
        values = [option.value if isinstance(option, When) else option for option in self.options]
        return [as_label(flatten(value).get("", str(value))) for value in values]

    def values(self) -> list[Any]:
        """All options."""
        return list(self.options)

    def ends(self) -> list[Any]:
        """All options."""
        return list(self.options)

    def suggest(self, trial: Trial, name: str) -> Any:
        """An option for a trial."""
        labels = self.labels
        return self.options[labels.index(trial.suggest_categorical(name, labels))]


@dataclass(frozen=True)
class When:
    """A value of a path, and what may vary where it is taken.

    It stands alone or is an option of a `Choice`:
    `{"optimizer": Choice("adam", When("sgd", {"optimizer.momentum": Uniform(0, 0.99)}))}`.
    """

    value: Any
    space: "Space"

    def values(self) -> list[Any]:
        """Itself alone."""
        return [self]

    def ends(self) -> list[Any]:
        """Itself alone."""
        return [self]

    def suggest(self, trial: Trial, name: str) -> Any:
        """Itself."""
        return Choice(self).suggest(trial, name)


Dimension = Int | Uniform | LogUniform | Choice | When
Space = Mapping[str, Dimension]
"""Dimensions by path."""


def as_label(value: Json) -> Json:
    """A value of a point as a study keeps it: what is a list, as text."""
    return str(value) if isinstance(value, (list, dict)) else value


def _check_range(dimension: Any, low: float, high: float, step: float | None = None) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"{dimension}: the range is empty")
    if step is not None and not step > 0:
        raise UserError(f"{dimension}: a step is positive")
