"""The `jdl` command: train, evaluate, reproduce, list, prepare."""

import contextlib
import functools
import inspect
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from jdl._version import __version__
from jdl.errors import UserError, nearest

USAGE = f"""jdl {__version__}: deep-learning research on JAX

  jdl train EXPERIMENT [--workdir DIR] [--seeds N] [--field.path VALUE ...]
      train an experiment, or go on with the run that DIR holds
  jdl evaluate DIR [--split S]
      score a run on a whole split
  jdl reproduce DIR | --all
      run a finished run again and compare; or every experiment against its promise
  jdl list
      the experiments: what, data, expected result and time
  jdl prepare NAME [--from RAW]
      write a data set in the format that jdl reads, without TensorFlow

`jdl COMMAND --help` says more; `jdl train EXPERIMENT --help` lists every field that can be set.
EXPERIMENT is a Python file, or the name of one in ./experiments or shipped with jdl.
A run directory is trusted like a script: commands that take DIR run its experiment.py."""


def train(
    experiment: Positional[str],
    /,
    workdir: Path | None = None,
    seeds: int | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Train an experiment. Killed at any moment, the same command goes on from the last checkpoint.

    Any field of the experiment can be set by its path: --epochs 3 --model.widths 256 128
    --optimizer sgd --optimizer.momentum 0.9 --hooks.3.every 100 --strategy fully_sharded.
    Fields that hold one of jdl's dataclasses take another one by name. A dash and an underscore
    are alike. `jdl train EXPERIMENT --help` lists the fields with their meaning.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        workdir: the run directory (default: runs/NAME-DATE); one that holds a run goes on.
        seeds: train with that many seeds, in DIR/seed-0, ..., and write DIR/summary.json.
        distributed: join the processes that Slurm, Open MPI, Kubernetes or a TPU pod started.
        coordinator: HOST:PORT of process 0, to join processes by hand.
        processes: how many there are.
        process: which this is, from 0.
    """
    from jdl.experiment import load
    from jdl.overrides import override

    if distributed or coordinator:
        if workdir is None:
            raise UserError("several processes need one --workdir that all of them can reach")
        import jax

        jax.distributed.initialize(coordinator, processes, process)
    file = load(experiment)
    changed = override(file.experiment, changes or {})
    workdir = workdir or _dated(Path("runs") / file.name)
    if seeds is None:
        from jdl.loop import train

        run = train(changed, workdir, file=file, overrides=changes)
        for split, metrics in run.result["metrics"].items():
            run.say(_scores(split, metrics))
        run.say(f"{run.result['seconds']:.1f} s; {workdir} holds the run")
    else:
        from jdl.seeds import train_seeds

        summary = train_seeds(changed, seeds, workdir, file=file, overrides=changes)
        for split, metrics in summary["metrics"].items():
            for name, spread in metrics.items():
                shown = "  ".join(f"{key} {value:.4f}" for key, value in spread.items())
                print(f"{split:<10} {name:<10} {shown}")
        print(f"{summary['seconds']['mean']:.1f} s a run; {workdir}/summary.json")


def evaluate(
    directory: Positional[Path], /, split: str = "test", experiment: Path | None = None
) -> None:
    """Score a run on a whole split, with the weights that it ended with.

    Runs the directory's experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        split: train, validation or test.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.loop import open_run
    from jdl.reproduce import read_run

    recorded = read_run(directory, experiment)
    run = open_run(directory, recorded.experiment, recorded.file.name)
    print(json.dumps({"split": split, **run.evaluate(split)}))


def reproduce(
    directory: Positional[Path | None] = None,
    /,
    all: bool = False,
    workdir: Path | None = None,
    tolerance: float = 0.005,
    experiment: Path | None = None,
) -> int:
    """Run a finished run again elsewhere and say what differs.

    Exit code 0 where the parameters are equal bit for bit; or where versions, devices or flags
    differ and every metric is within the tolerance. Runs the directory's experiment.py: trust a
    run directory as you would a script.

    Args:
        directory: a run directory.
        all: run every experiment instead, with the seeds of its Expect: line, against that line.
        workdir: where to run (default: beside the directory, or runs/reproduce-DATE).
        tolerance: largest difference of a metric.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl import reproduce as again

    if all == (directory is not None):
        raise UserError("reproduce takes either a run directory or --all")
    if directory is None:
        failed = 0
        for check in again.reproduce_all(workdir or _dated(Path("runs") / "reproduce")):
            kept = abs(check.reached - check.promised) <= tolerance
            failed += not (check.note or kept)
            numbers = f"{check.metric} {check.reached:.4f}, promised {check.promised:.4f}"
            verdict = f"skipped: {check.note}" if check.note else numbers
            print(
                f"{check.name}: {verdict}{'' if check.note or kept else '  NOT KEPT'}", flush=True
            )
        return 1 if failed else 0
    target = workdir or _dated(directory.with_name(f"{directory.name}-again"))
    found = again.reproduce(directory, target, experiment)
    for name, (old, new) in found.metrics.items():
        print(f"{name}: {old!r} recorded, {new!r} now")
    print("parameters: " + ("equal, bit for bit" if found.equal else "not equal"))
    for line in found.surroundings:
        print(f"differs: {line}")
    return 0 if found.within(tolerance) else 1


def list_experiments() -> None:
    """List the experiments: what, data, expected result and time."""
    from jdl.experiment import available, documentation, expectation, load

    rows = []
    for name, path in available().items():
        try:
            data = load(path).experiment.data.describe()
        except UserError as error:
            data = f"({error})"
        promise = expectation(path)
        result = f"{promise.metric} {promise.mean}" if promise else "-"
        seconds = f"{promise.seconds:g} s" if promise else "-"
        rows.append((name, documentation(path).split("\n")[0], data, result, seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def prepare(
    name: Positional[str],
    /,
    from_: Annotated[Path | None, arg(name="from")] = None,
    data_dir: Path | None = None,
) -> None:
    """Write a data set as array_record, in TensorFlow Datasets' layout and without TensorFlow.

    For mnist, fashion_mnist, cifar10, imdb_reviews, cats_vs_dogs, tiny_shakespeare and multi30k.

    Args:
        name: of the data set.
        from_: the original files, where they are at hand; else they are downloaded.
        data_dir: where data sets lie (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
    """
    from jdl.data.prepare import prepare

    print(f"{prepare(name, raw=from_, data_dir=data_dir)} holds {name}")


COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "list": list_experiments,
    "prepare": prepare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a user's mistake takes one sentence."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(USAGE)
            return 0
        if args[0] == "--version":
            print(f"jdl {__version__}")
            return 0
        if args[0] not in COMMANDS:
            hint = nearest(args[0], COMMANDS)
            raise UserError(f"there is no command {args[0]!r}{hint} (`jdl --help` shows all)")
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
    function = COMMANDS[command]
    own = {
        "from" if name == "from_" else name.replace("_", "-")
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "changes" and parameter.kind is not parameter.POSITIONAL_ONLY
    }
    mine, changes = _separate(args, own)
    if command == "train":
        asks = {"-h", "--help"} & set(args)
        if asks and args[0] not in asks:
            _show_fields(args[0])
            return 0
        return _parsed(command, function, mine, changes=changes)
    if changes:
        name = next(iter(changes))
        raise UserError(f"jdl {command} has no option --{name}{nearest(name, own)}")
    return _parsed(command, function, mine)


def _separate(args: list[str], own: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into the command's own words and overrides by path."""
    mine, changes = [], {}
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
            mine += [f"--{name}", *values]
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
    from jdl.experiment import documentation, load
    from jdl.help import field_lines

    file = load(name)
    print(documentation(file.path).strip())
    print(f"\nFields of {name}, with type and [present value]:\n")
    for line in field_lines(file.experiment):
        print(line)


def _dated(path: Path) -> Path:
    """The path with the time appended, which no run has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    dated, count = path.with_name(f"{path.name}-{stamp}"), 1
    while dated.exists():
        count += 1
        dated = path.with_name(f"{path.name}-{stamp}-{count}")
    return dated


def _scores(split: str, metrics: Mapping[str, float]) -> str:
    return f"{split:<10} " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
