"""Search spaces: points, grids, constraints and validation against an experiment."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import BaseTrial, FixedTrial

from jdl.config.overrides import flatten, override, snake
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.sweeps.search.dimensions import Choice, Dimension, Space, When
from jdl.typing import Json

Point = Mapping[str, Any]
"""Values by path, as `override` takes them."""

Constraint = Callable[[Point], bool]
"""Whether a point may be trained."""


def suggest(space: Space, trial: BaseTrial, suffix: str = "") -> dict[str, Any]:
    """The point of a trial, with the conditional space of every `When` chosen.

    Args:
      space: the dimensions.
      trial: suggests each value by a name: the path, followed inside a `When` by its condition.
      suffix: that condition.
    """
    point: dict[str, Any] = {}
    for path, dimension in space.items():
        found = dimension.suggest(trial, path + suffix)
        if isinstance(found, When):
            point[path] = found.value
            point |= suggest(found.space, trial, _condition(path, found))
        else:
            point[path] = found
    return point


def grid_points(space: Space, constraints: Sequence[Constraint] = ()) -> list[dict[str, Any]]:
    """Values, by the names of `suggest`, of all points that satisfy the constraints.

    Raises:
      UserError: a dimension has infinitely many values, or no point is left.
    """
    every = _combinations(space, lambda dimension: dimension.values(), "")
    left = [v for v in every if is_allowed(suggest(space, FixedTrial(v)), constraints)]
    if not left:
        raise UserError("no point of the grid satisfies the constraints")
    return left


def is_allowed(point: Point, constraints: Sequence[Constraint]) -> bool:
    """Whether a point satisfies every constraint.

    Raises:
      UserError: a constraint raises an exception.
    """
    for constraint in constraints:
        try:
            if not constraint(point):
                return False
        except Exception as error:
            name = getattr(constraint, "__name__", str(constraint))
            raise UserError(f"the constraint {name} fails on {dict(point)}: {error!r}") from error
    return True


def by_name(space: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    """All dimensions, conditional ones included, by the names of `suggest`."""
    found: dict[str, Any] = {}
    for path, dimension in space.items():
        found[path + suffix] = dimension
        options = dimension.options if isinstance(dimension, Choice) else (dimension,)
        for option in options:
            if isinstance(option, When):
                found |= by_name(option.space, _condition(path, option))
    return found


def describe(space: Space) -> dict[str, str]:
    """Dimensions as text, by name; equal for equal spaces, also of other processes."""
    return {name: _describe(dimension) for name, dimension in by_name(space).items()}


def space_as_json(space: Space) -> list[dict[str, Json]]:
    """Dimensions as JSON: `name`, `path`, `kind`, and the fields of that kind."""
    return [
        {"name": name, "path": name.partition(" (")[0], **_fields(dimension)}
        for name, dimension in by_name(space).items()
    ]


def validate(space: Mapping[str, Any], experiment: Experiment) -> None:
    """Overrides the experiment with the bounds of every dimension.

    Raises:
      UserError: a path does not exist, or a value has the wrong type or is out of range.
    """
    if not space:
        raise UserError(
            "the search space is empty: add dimensions by --space, or as `space` in the "
            "experiment file"
        )
    for name, dimension in by_name(space).items():
        if not isinstance(dimension, Dimension):
            raise UserError(
                f"{name}: {dimension!r} is not a dimension: write it as Int, Uniform, LogUniform, "
                f"Choice or When"
            )
        for option in getattr(dimension, "options", ()):
            if "" not in flatten(option.value if isinstance(option, When) else option):
                raise UserError(
                    f"{name}: an option is a number, a string or a tuple of such, not {option}: "
                    f"name the class and vary its fields, as When('sgd', {{...}})"
                )
    for path, dimension in space.items():
        one = {p: d if p == path else _first(d) for p, d in space.items()}
        for values in _combinations(one, lambda dimension: dimension.bounds(), ""):
            override(experiment, suggest(one, FixedTrial(values)))


def _fields(dimension: Dimension) -> dict[str, Json]:
    if isinstance(dimension, When):
        dimension = Choice(dimension)
    if isinstance(dimension, Choice):
        return {"kind": "choice", "options": dimension.labels}
    return {"kind": snake(type(dimension).__name__), **vars(dimension)}


def _describe(dimension: Dimension) -> str:
    # Not `str` of a Choice: the address of a function in it differs between processes.
    if isinstance(dimension, (Choice, When)):
        return f"Choice({', '.join(map(repr, _fields(dimension)['options']))})"
    return str(dimension)


def _first(dimension: Dimension) -> Dimension:
    """Returns a dimension fixed to its first value, while another one is varied."""
    first = dimension.bounds()[0]
    if not isinstance(first, When):
        return Choice(first)
    return When(first.value, {path: _first(below) for path, below in first.space.items()})


def _combinations(
    space: Space, values: Callable[[Dimension], list[Any]], suffix: str
) -> list[dict[str, Any]]:
    """Every combination of some values of each dimension, by the names of `suggest`."""
    found: list[dict[str, Any]] = [{}]
    for path, dimension in space.items():
        try:
            options = values(dimension)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        here: list[dict[str, Any]] = []
        for option in options:
            (label,) = Choice(option).labels
            inner = option.space if isinstance(option, When) else {}
            below = _combinations(inner, values, _condition(path, option))
            here += [{path + suffix: label, **values_below} for values_below in below]
        found = [{**point, **more} for point, more in itertools.product(found, here)]
    return found


def _condition(path: str, option: Any) -> str:
    """The suffix of the names inside an option."""
    return f" ({path}={Choice(option).labels[0]})"
