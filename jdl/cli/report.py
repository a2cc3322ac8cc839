"""The commands that say what came of runs: `jdl report` and `jdl compare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.errors import UserError


def report(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    /,
    out: Path | None = None,
    experiment: Path | None = None,
) -> None:
    """Write a page about a run, or about a search.

    Of a run: scores beside simple baselines, curves, mistakes, costs. This runs the directory's
    experiment.py: trust a run directory as you would a script. Of a search: its best point, all
    trials, and how the score goes with what was varied; nothing of it is executed, and it may still
    be going on.

    Args:
        directory: a run directory, or that of a search.
        out: where to write index.html and its pictures (default: DIR/report).
        experiment: an experiment file of your own to use instead of the run directory's.
    """
    from jdl.report.run_report import write_report
    from jdl.report.search_report import is_search, write_search_report

    if is_search(directory):
        print(write_search_report(directory, out))
    else:
        print(write_report(directory, out, experiment))


def compare(
    directories: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")],
    /,
    out: Path = Path("compare"),
) -> None:
    """Print in what runs differ and what came of it, and draw their losses.

    Executes nothing that the directories hold.

    Args:
        directories: run directories, or those that --seeds made, of which each is one row.
        out: where to write compare.html and its picture.
    """
    from jdl.report.comparison import write_comparison

    if not directories:
        raise UserError("compare takes one run directory or more")
    text, page = write_comparison(directories, out)
    print(f"{text}\n{page}")
