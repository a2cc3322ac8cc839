"""The `jdl` command."""

import contextlib
import inspect
import io
import sys
from collections.abc import Sequence

from jdl._version import __version__
from jdl.errors import UserError, nearest
from jdl.trainer.interrupt import Interruption

USAGE = f"""jdl {__version__}: deep-learning research on JAX

{{commands}}

`jdl COMMAND --help` shows the options; `jdl train EXPERIMENT --help` lists every field to set.
EXPERIMENT is a Python file, or the name of one in ./experiments or shipped with jdl.
A run directory is trusted like a script: commands that take a RUN execute its experiment.py."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a UserError is printed as one sentence."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Unprintable characters show as "?"; input that is not UTF-8 is reported where it is used.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(_usage())
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
        sys.stdout = None  # the reader of our output has exited, as `head` does
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"jdl: {where}{error.strerror}; what was saved is intact", file=sys.stderr)
        return 1


def _usage() -> str:
    from jdl.cli.arguments import positionals
    from jdl.cli.commands import COMMANDS

    lines = []
    for name, function in COMMANDS.items():
        assert function.__doc__ is not None
        lines.append(f"  jdl {' '.join([name, *positionals(function)])}")
        lines.append(f"      {function.__doc__.splitlines()[0]}")
    return USAGE.format(commands="\n".join(lines))


def _call(command: str, args: list[str]) -> int | None:
    """Runs a command, or prints its help."""
    import tyro

    from jdl.cli.arguments import parse
    from jdl.cli.commands import COMMANDS

    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        raise UserError(f"there is no command {command!r}{hint} (`jdl --help` lists all)")
    function = COMMANDS[command]
    if not {"-h", "--help"} & set(args):
        positional, named = parse(command, function, args)
        return function(*positional, **named)
    if "overrides" in inspect.signature(function).parameters and not args[0].startswith("-"):
        _print_fields(args[0])
        return 0
    with contextlib.suppress(SystemExit):
        tyro.cli(
            function,
            args=["--help"],
            prog=f"jdl {command}",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return 0


def _print_fields(name: str) -> None:
    from jdl.config.experiment_file import documentation, load
    from jdl.config.field_help import field_lines

    file = load(name)
    print(documentation(file.path).strip())
    print(f"\nFields of {name}, with type and [current value]:\n")
    for line in field_lines(file.experiment):
        print(line)
