"""`jdl report`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile


def report(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    /,
    out: Path | None = None,
    experiment: OwnFile = None,
) -> None:
    """Write an HTML report on a run or a search.

    For a run: scores beside simple baselines, learning curves, errors and costs; this executes the
    directory's experiment.py: trust a run directory like a script. For a search, which may still be
    running: the best point, all trials and the score by each parameter; this executes nothing.

    Args:
        directory: of a run or a search.
        out: directory of index.html and its figures (default: DIR/report).
    """
    from jdl.report.run_report import write_report
    from jdl.report.search_report import is_search, write_search_report

    if is_search(directory):
        print(write_search_report(directory, out))
    else:
        print(write_report(directory, out, experiment))
