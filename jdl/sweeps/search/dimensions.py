"""Typed dimensions of a search space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jdl.config.overrides import flatten
from jdl.errors import UserError
from jdl.typing import Json

# `trial` is an `optuna.trial.BaseTrial`; experiment files import this module without Optuna.


@dataclass(frozen=True)
class Int:
    """Integers from `low` to `high` inclusive, in steps of `step`."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.step)

    def values(self) -> list[Any]:
        """All values, for a grid."""
        return list(range(self.low, self.high + 1, self.step))

    def bounds(self) -> list[Any]:
        """The smallest and the largest value."""
        return [self.low, self.values()[-1]]

    def suggest(self, trial: Any, name: str) -> Any:
        """The value of a trial."""
        return trial.suggest_int(name, *self.bounds(), step=self.step)


@dataclass(frozen=True)
class Uniform:
    """Floats from `low` to `high`, uniformly distributed, in steps of `step` if one is given."""

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high, self.step)

    def values(self) -> list[Any]:
        """All values, for a grid.

        Raises:
          UserError: there is no step.
        """
        if self.step is None:
            raise UserError(f"{self} has no step, so a grid cannot list its values")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + index * self.step, 12) for index in range(count)]

    def bounds(self) -> list[Any]:
        """The smallest and the largest value."""
        return [self.low, self.high if self.step is None else self.values()[-1]]

    def suggest(self, trial: Any, name: str) -> Any:
        """The value of a trial."""
        return trial.suggest_float(name, *self.bounds(), step=self.step)


@dataclass(frozen=True)
class LogUniform:
    """Positive floats from `low` to `high`, uniformly distributed in their logarithm."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)
        if self.low <= 0:
            raise UserError(f"{self}: a logarithmic range holds positive numbers only")

    def values(self) -> list[Any]:
        """Raises a UserError: a grid cannot list them."""
        raise UserError(f"{self} has no step, so a grid cannot list its values")

    def bounds(self) -> list[Any]:
        """The smallest and the largest value."""
        return [self.low, self.high]

    def suggest(self, trial: Any, name: str) -> Any:
        """The value of a trial."""
        return trial.suggest_float(name, self.low, self.high, log=True)


@dataclass(frozen=True, init=False)
class Choice:
    """One of several unordered values (categorical)."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)
        if not options:
            raise UserError("Choice() has no options")
        if len({str(label) for label in self.labels}) < len(options):
            raise UserError(f"{self}: two options are the same")

    @property
    def labels(self) -> list[Json]:
        """The options as Optuna stores them: numbers and strings unchanged, others as strings."""
        values = [option.value if isinstance(option, When) else option for option in self.options]
        flat = [flatten(value).get("", str(value)) for value in values]
        return [str(value) if isinstance(value, (list, dict)) else value for value in flat]

    def values(self) -> list[Any]:
        """All options."""
        return list(self.options)

    def bounds(self) -> list[Any]:
        """All options."""
        return list(self.options)

    def suggest(self, trial: Any, name: str) -> Any:
        """The option of a trial."""
        labels = self.labels
        return self.options[labels.index(trial.suggest_categorical(name, labels))]


@dataclass(frozen=True)
class When:
    """A value of a path, with a conditional space that varies only where it is chosen.

    It is an option of a `Choice`, or alone:
    `{"optimizer": Choice("adam", When("sgd", {"optimizer.momentum": Uniform(0, 0.99)}))}`.
    """

    value: Any
    space: "Space"

    def values(self) -> list[Any]:
        """Itself."""
        return [self]

    def bounds(self) -> list[Any]:
        """Itself."""
        return [self]

    def suggest(self, trial: Any, name: str) -> Any:
        """Itself."""
        return Choice(self).suggest(trial, name)


Dimension = Int | Uniform | LogUniform | Choice | When
Space = Mapping[str, Dimension]
"""Dimensions by path."""


def _check_range(dimension: Any, low: float, high: float, step: float | None = None) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"{dimension}: the range is empty")
    if step is not None and not step > 0:
        raise UserError(f"{dimension}: the step must be positive")
