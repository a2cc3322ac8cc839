"""The `jdl` command: its command line, parsed."""

import contextlib
import functools
import inspect
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jdl._version import __version__
from jdl.errors import UserError, nearest
from jdl.trainer.interrupt import Interruption

USAGE = f"""jdl {__version__}: deep-learning research on JAX

  jdl train EXPERIMENT [--workdir DIR] [--seeds N] [--field.path VALUE ...]
      train an experiment, or go on with the run that DIR holds
  jdl tune EXPERIMENT [--space PATH=KIND:... ...] [--sampler S] [--trials N] [--workers K]
      search for the best variant of an experiment, or go on with the search that DIR holds
  jdl evaluate DIR [--split S]
      score a run on a whole split
  jdl predict DIR FILE ...
      predict from images, CSV files or texts; a line of JSON for each example
  jdl generate RUN [--prompt TEXT] [--tokens N]
      go on with a text, by the language model of a run
  jdl translate RUN [--text TEXT]
      translate a text, or the lines of the standard input
  jdl export RUN FILE
      write a run's prediction as StableHLO, which JAX runs without jdl
  jdl reproduce DIR | --all
      run a finished run again and compare; or every experiment against its promise
  jdl report DIR [--out DIR]
      a page about a run, with simple baselines, curves, mistakes and costs; or about a search
  jdl compare RUN RUN ... [--out DIR]
      in what runs differ and what came of it
  jdl find-lr EXPERIMENT [--field.path VALUE ...]
      suggest a learning rate: where the loss falls steepest
  jdl find-batch EXPERIMENT [--field.path VALUE ...]
      suggest a batch size: the smallest that is about as fast as any
  jdl plan EXPERIMENT [--devices N] [--memory 80GB] [--field.path VALUE ...]
      parameters, memory and time before compiling, and what would fit
  jdl list
      the experiments: what, data, expected result and time
  jdl prepare NAME [--from RAW]
      write a data set in the format that jdl reads, without TensorFlow

`jdl COMMAND --help` says more; `jdl train EXPERIMENT --help` lists every field that can be set.
EXPERIMENT is a Python file, or the name of one in ./experiments or shipped with jdl.
A run directory is trusted like a script: commands that take one run its experiment.py."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a user's mistake takes one sentence."""
    args = list(sys.argv[1:] if argv is None else argv)
    # What cannot be printed shows as "?", and what is no UTF-8 is complained of where it is used.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(USAGE)
            return 0
        if args[0] == "--version":
            print(f"jdl {__version__}")
            return 0
        with Interruption(hard=True):
            return _call(args[0], args[1:]) or 0
    except UserError as error:
        print(f"jdl: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has gone, as `head` does
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"jdl: {where}{error.strerror}; what was saved is intact", file=sys.stderr)
        return 1


def _call(command: str, args: list[str]) -> int | None:
    """Parses a command's own options with tyro and its overrides with `override`, and runs it."""
    from jdl.cli.commands import COMMANDS

    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        raise UserError(f"there is no command {command!r}{hint} (`jdl --help` shows all)")
    function = COMMANDS[command]
    parameters = inspect.signature(function).parameters
    own = {
        name.removesuffix("_").replace("_", "-")
        for name, parameter in parameters.items()
        if name != "changes" and parameter.kind is not parameter.POSITIONAL_ONLY
    }
    mine, changes = _separate(args, own)
    if "changes" in parameters:  # the command takes an experiment
        asks = {"-h", "--help"} & set(args)
        if asks and args[0] not in asks:
            _show_fields(args[0])
            return 0
        _check_roots(command, changes, own)
        return _parsed(command, function, mine, changes=changes)
    if changes:
        name = next(iter(changes))
        raise UserError(f"jdl {command} has no option --{name}{nearest(name, own)}")
    return _parsed(command, function, mine)


def _check_roots(command: str, changes: dict[str, Any], own: set[str]) -> None:
    """Refuses a flag that neither the command nor an experiment has, naming the nearest of both."""
    import dataclasses

    from jdl.experiment import Experiment

    known = {field.name for field in dataclasses.fields(Experiment)}
    for path in changes:
        root = path.split(".")[0]
        if root not in known:
            hint = nearest(root, [*known, *own])
            raise UserError(f"neither `jdl {command}` nor an experiment has a field {root!r}{hint}")


def _separate(args: list[str], own: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into the command's own words and overrides by path."""
    mine, changes, seen = [], {}, set()
    index = 0
    while index < len(args):
        word = args[index]
        index += 1
        if not word.startswith("--") or word == "--help":
            mine.append(word)
            continue
        name, given, value = word[2:].partition("=")
        values = [value] if given else []
        while not given and index < len(args) and not args[index].startswith("--"):
            values.append(args[index])
            index += 1
        name = name.replace("_", "-")
        if name in own or name.removeprefix("no-") in own:
            if name in seen:
                raise UserError(f"--{name} is given twice")
            seen.add(name)
            mine += [f"--{name}={value}"] if given else [f"--{name}", *values]
        else:
            changes[name.replace("-", "_")] = _value(values)
    return mine, changes


def _value(values: list[str]) -> Any:
    """A flag alone means True; one word stays text; several make a list."""
    if not values:
        return "True"
    return values[0] if len(values) == 1 else values


def _parsed(
    command: str, function: Callable[..., int | None], args: list[str], **fixed: Any
) -> int | None:
    """Calls a function with arguments from the command line; tyro's complaint in one sentence."""
    import tyro

    if "--help" in args or "-h" in args:
        with contextlib.suppress(SystemExit):
            tyro.cli(function, args=["--help"], prog=f"jdl {command}")
        return 0
    caught: dict[str, Any] = {}

    @functools.wraps(function)
    def record(*positional: Any, **named: Any) -> None:
        caught.update(positional=positional, named=named)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            tyro.cli(record, args=args, prog=f"jdl {command}")
    except SystemExit:
        # A title, the complaint, and after a rule or an empty line more help, all in a box.
        lines = iter(line.strip("│╭╮╰╯─-+| ") for line in said.getvalue().splitlines())
        next(filter(None, lines))
        reason = " ".join([next(filter(None, lines)), *itertools.takewhile(bool, lines)])
        raise UserError(f"{reason} (`jdl {command} --help` says more)") from None
    return function(*caught["positional"], **{**caught["named"], **fixed})


def _show_fields(name: str) -> None:
    from jdl.config.experiment_file import documentation, load
    from jdl.config.field_help import field_lines

    file = load(name)
    print(documentation(file.path).strip())
    print(f"\nFields of {name}, with type and [present value]:\n")
    for line in field_lines(file.experiment):
        print(line)
