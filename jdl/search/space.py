"""What may vary: typed dimensions over the dotted paths of `override`."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jdl.errors import UserError, nearest
from jdl.experiment import Experiment
from jdl.overrides import flatten, override, snake
from jdl.typing import Json

Point = Mapping[str, Any]
"""Values by path, as `override` takes them."""

Constraint = Callable[[Point], bool]
"""Whether a point may be trained."""


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


def as_label(value: Json) -> Json:
    """A value of a point as a study keeps it: what is a list, as text."""
    return str(value) if isinstance(value, (list, dict)) else value


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


def parse(words: Sequence[str]) -> dict[str, Dimension]:
    """A space from words such as `optimizer.learning-rate=log:1e-4:1e-1`.

    Kinds are `int:LOW:HIGH[:STEP]`, `uniform:LOW:HIGH[:STEP]`, `log:LOW:HIGH` and
    `choice:A,B,...`.

    Raises:
      UserError: a word has another form.
    """
    return {
        path.replace("-", "_"): _dimension(path, kind, text)
        for path, kind, text in map(_split, words)
    }


def _split(word: str) -> tuple[str, str, str]:
    path, equals, rest = word.partition("=")
    kind, colon, text = rest.partition(":")
    if not (path and equals and colon):
        raise UserError(
            f"--space {word}: write PATH=KIND:..., as optimizer.learning-rate=log:1e-4:1e-1"
        )
    return path, kind, text


def _dimension(path: str, kind: str, text: str) -> Dimension:
    kinds: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
        "int": (Int, int, (2, 3)),
        "uniform": (Uniform, float, (2, 3)),
        "log": (LogUniform, float, (2,)),
    }
    if kind == "choice":
        return Choice(*(_literal(part) for part in text.split(",")))
    if kind not in kinds:
        known = ", ".join([*kinds, "choice"])
        hint = nearest(kind, [*kinds, "choice"])
        raise UserError(f"--space {path}: there is no kind {kind!r} (there are {known}){hint}")
    build, read, counts = kinds[kind]
    parts = text.split(":")
    try:
        numbers = [read(part) for part in parts]
    except ValueError:
        raise UserError(f"--space {path}: {text!r} are not numbers for {kind!r}") from None
    if len(parts) not in counts:
        raise UserError(
            f"--space {path}: {kind} takes {' or '.join(map(str, counts))} numbers, not {text!r}"
        )
    return build(*numbers)


def _literal(text: str) -> Any:
    """A number where the text is one, else the text, as `override` takes it."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text


def _check_range(dimension: Any, low: float, high: float, step: float | None = None) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"{dimension}: the range is empty")
    if step is not None and not step > 0:
        raise UserError(f"{dimension}: a step is positive")
