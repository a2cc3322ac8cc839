"""What may vary: dimensions over the dotted paths of `override`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jdl.config.overrides import flatten, override, snake
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.sweeps.search.dimensions import (
    Choice,
    Dimension,
    Space,
    Trial,
    When,
)
from jdl.typing import Json

Point = Mapping[str, Any]
"""Values by path, as `override` takes them."""

Constraint = Callable[[Point], bool]
"""Whether a point may be trained."""


def suggest(space: Space, trial: Trial, where: str = "") -> dict[str, Any]:
    """A point, value by value; what belongs to a `When` only where that is taken.

    Args:
      space: what may vary.
      trial: gives each value, by its path and, inside a `When`, the choice that led there.
      where: that choice, as names end.
    """
    point: dict[str, Any] = {}
    for path, dimension in space.items():
        found = dimension.suggest(trial, path + where)
        if isinstance(found, When):
            point[path] = found.value
            point |= suggest(found.space, trial, _inside(path, found))
        else:
            point[path] = found
    return point


@dataclass(frozen=True)
class Fixed:
    """A trial whose values are known, by the names that `suggest` asks for."""

    values: Mapping[str, Any]

    def suggest_int(self, name: str, low: int, high: int, *, step: int) -> int:
        """The value of that name."""
        del low, high, step
        return self.values[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The value of that name."""
        del low, high, step, log
        return self.values[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The value of that name."""
        del choices
        return self.values[name]


def grid(space: Space, constraints: Sequence[Constraint] = ()) -> list[dict[str, Any]]:
    """Every point that the constraints let through, by the names that `suggest` asks for.

    Raises:
      UserError: a dimension has infinitely many values, or no point is left.
    """
    listed = _combined(space, lambda dimension: dimension.values(), "")
    left = [values for values in listed if allowed(suggest(space, Fixed(values)), constraints)]
    if not left:
        raise UserError("the constraints let no point of the grid through")
    return left


def allowed(point: Point, constraints: Sequence[Constraint]) -> bool:
    """Whether every constraint lets a point through.

    Raises:
      UserError: one of them fails.
    """
    for constraint in constraints:
        try:
            if not constraint(point):
                return False
        except Exception as error:
            name = getattr(constraint, "__name__", str(constraint))
            raise UserError(f"the constraint {name} fails on {dict(point)}: {error!r}") from error
    return True


def named(space: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every dimension by the name that `suggest` asks for, those inside a `When` too."""
    found: dict[str, Any] = {}
    for path, dimension in space.items():
        found[path + where] = dimension
        options = dimension.options if isinstance(dimension, Choice) else (dimension,)
        for option in options:
            if isinstance(option, When):
                found |= named(option.space, _inside(path, option))
    return found


def describe(space: Space) -> dict[str, str]:
    """Dimensions in words, by name: two spaces are alike where these are."""
    return {name: _words(dimension) for name, dimension in named(space).items()}


def listed(space: Space) -> list[dict[str, Json]]:
    """Dimensions as JSON: `name`, `path`, `kind`, and the fields of that kind."""
    return [
        {"name": name, "path": name.partition(" (")[0], **_fields(dimension)}
        for name, dimension in named(space).items()
    ]


def check(space: Mapping[str, Any], experiment: Experiment) -> None:
    """Overrides the experiment by the ends of every dimension.

    Raises:
      UserError: there is no such path, or a value is of the wrong type or out of range.
    """
    if not space:
        raise UserError(
            "nothing may vary: give dimensions by --space, or as `space` beside the experiment"
        )
    for name, dimension in named(space).items():
        if not isinstance(dimension, Dimension):
            raise UserError(
                f"{name}: {dimension!r} is no dimension: write it as Int, Uniform, LogUniform, "
                f"Choice or When"
            )
        for option in getattr(dimension, "options", ()):
            if "" not in flatten(option.value if isinstance(option, When) else option):
                raise UserError(
                    f"{name}: an option is a number, a text or a tuple of such, not {option}: name "
                    f"the class and say what varies in it, as When('sgd', {{...}})"
                )
    for path, dimension in space.items():
        one = {p: d if p == path else _first(d) for p, d in space.items()}
        for values in _combined(one, lambda dimension: dimension.ends(), ""):
            override(experiment, suggest(one, Fixed(values)))


def _fields(dimension: Dimension) -> dict[str, Json]:
    if isinstance(dimension, When):
        dimension = Choice(dimension)
    if isinstance(dimension, Choice):
        return {"kind": "choice", "options": dimension.labels}
    return {"kind": snake(type(dimension).__name__), **vars(dimension)}


def _words(dimension: Dimension) -> str:
    """As `str`, but without what differs between processes, such as the address of a function."""
    if isinstance(dimension, (Choice, When)):
        return f"Choice({', '.join(map(repr, _fields(dimension)['options']))})"
    return str(dimension)


def _first(dimension: Dimension) -> Dimension:
    """A dimension of one value alone."""
    end = dimension.ends()[0]
    if not isinstance(end, When):
        return Choice(end)
    return When(end.value, {path: _first(below) for path, below in end.space.items()})


def _combined(
    space: Space, values: Callable[[Dimension], list[Any]], where: str
) -> list[dict[str, Any]]:
    """Every combination of some values of each dimension, by the names that `suggest` asks for."""
    found: list[dict[str, Any]] = [{}]
    for path, dimension in space.items():
        try:
            options = values(dimension)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        ways: list[dict[str, Any]] = []
        for option in options:
            (label,) = Choice(option).labels
            inner = option.space if isinstance(option, When) else {}
            below = _combined(inner, values, _inside(path, option))
            ways += [{path + where: label, **way} for way in below]
        found = [{**point, **way} for point, way in itertools.product(found, ways)]
    return found


def _inside(path: str, option: Any) -> str:
    """How the names of what belongs to an option end."""
    return f" ({path}={Choice(option).labels[0]})"
