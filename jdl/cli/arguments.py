"""Reads a command line as the arguments of a command's function, and types that commands share."""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg

from jdl.config.overrides import element_kind, parse_value
from jdl.errors import UserError, nearest

ExperimentName = Annotated[
    Positional[str],
    arg(
        metavar="EXPERIMENT",
        help="a Python file, or the name of one in ./experiments or shipped with jdl.",
    ),
]
RunDirectory = Annotated[
    Positional[Path],
    arg(
        metavar="RUN",
        help="a run directory; its experiment.py is executed: trust it like a script.",
    ),
]
OwnFile = Annotated[
    Path | None,
    arg(help="your own experiment file, to use instead of the run directory's experiment.py."),
]
Overrides = Suppress[Mapping[str, Any] | None]
"""Fields of the experiment by path; every flag that is not an option of the command."""


def warn_if_unfinished(directory: Path, run: Any) -> None:
    """Warns on the standard error that a run's weights are not its final ones."""
    if not run.result:
        print(f"{directory} is not finished: this is its newest checkpoint", file=sys.stderr)


def positionals(function: Callable[..., Any]) -> dict[str, Any]:
    """The positional arguments of a command, by their names in help: the type of each."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        next(one.metavar for one in hints[name].__metadata__ if getattr(one, "metavar", None)): hint
        for name, hint in typing.get_type_hints(function).items()
        if name in _parameters(function, positional=True)
    }


def parse(
    command: str, function: Callable[..., Any], args: Sequence[str]
) -> tuple[list[Any], dict[str, Any]]:
    """Converts a command line to the positional and named arguments of a command's function.

    Raises:
      UserError: an argument is missing, unknown, given twice or of another type.
    """
    hints = typing.get_type_hints(function)
    options = {
        name.removesuffix("_").replace("__", ".").replace("_", "-"): name
        for name in _parameters(function, positional=False)
    }
    takes_overrides = options.pop("overrides", None) is not None
    # How many values an option takes; a tuple takes all up to the next flag, as overrides do.
    arity = {
        flag: 0 if hints[name] is bool else 1
        for flag, name in options.items()
        if element_kind(hints[name]) is None
    }
    words, flags = split(args, arity)
    named = {options[f]: _option(f, hints[options[f]], flags.pop(f)) for f in options if f in flags}
    if takes_overrides:
        _check_fields(command, flags, options)
        named["overrides"] = overrides(flags)
    elif flags:
        name = next(iter(flags))
        raise UserError(f"jdl {command} has no option --{name}{nearest(name, options)}")
    return _positional(command, function, words), named


def split(args: Sequence[str], arity: Mapping[str, int]) -> tuple[list[str], dict[str, list[str]]]:
    """Splits a command line into positional words and flags with their values.

    Args:
      args: the command line; in the name of a flag `-` and `_` are alike.
      arity: how many words each flag takes; others take all words up to the next flag.
    """
    words: list[str] = []
    flags: dict[str, list[str]] = {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-")
        if name in flags:
            raise UserError(f"--{name} is given twice")
        flags[name] = [value] if equals else []
        while rest and not equals and not rest[0].startswith("--"):
            if len(flags[name]) == arity.get(name):
                break
            flags[name].append(rest.pop(0))
    return words, flags


def overrides(flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """Flags as overrides: one alone means True; one word stays text; several make a list."""
    return {
        name.replace("-", "_"): values if len(values) > 1 else next(iter(values), "True")
        for name, values in flags.items()
    }


def _parameters(function: Callable[..., Any], positional: bool) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if (p.kind is p.POSITIONAL_ONLY) == positional]


def _option(flag: str, hint: Any, values: list[str]) -> Any:
    """The value of an option."""
    if (element := element_kind(hint)) is not None:
        return tuple(parse_value(element, [value], f"--{flag}") for value in values)
    if hint is bool and not values:
        return True
    if not values:
        raise UserError(f"--{flag} needs a value")
    return parse_value(hint, values, f"--{flag}")


def _positional(command: str, function: Callable[..., Any], words: list[str]) -> list[Any]:
    """The values of the positional arguments; a tuple takes all words that are left."""
    found, defaults = [], inspect.signature(function).parameters.values()
    rest = list(words)
    for (shown, hint), parameter in zip(positionals(function).items(), defaults, strict=False):
        if (element := element_kind(hint)) is not None:
            found.append(tuple(parse_value(element, [word], shown) for word in rest))
            rest = []
        elif rest:
            found.append(parse_value(hint, [rest.pop(0)], shown))
        elif parameter.default is parameter.empty:
            raise UserError(f"jdl {command} needs {shown} (see `jdl {command} --help`)")
    if rest:
        raise UserError(f"jdl {command} takes no argument {rest[0]!r} (see `jdl {command} --help`)")
    return found


def _check_fields(command: str, flags: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Refuses a flag that neither the command nor an experiment has, naming the nearest of both."""
    from jdl.experiment import Experiment

    known = {field.name for field in dataclasses.fields(Experiment)}
    for flag in flags:
        root = flag.replace("-", "_").split(".")[0]
        if root not in known:
            hint = nearest(root, [*known, *options])
            raise UserError(f"neither `jdl {command}` nor an experiment has a field {root!r}{hint}")
