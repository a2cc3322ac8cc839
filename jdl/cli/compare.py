"""`jdl compare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.errors import UserError


def compare(
    directories: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")],
    /,
    out: Path = Path("compare"),
) -> None:
    """Compare runs: differing fields, metrics, loss curves.

    Executes nothing in the directories.

    Args:
        directories: run directories; one that --seeds made becomes a row of averages.
        out: directory of compare.html and its figure.
    """
    from jdl.report.comparison import write_comparison

    if not directories:
        raise UserError("compare takes one run directory or more")
    text, page = write_comparison(directories, out)
    print(f"{text}\n{page}")
