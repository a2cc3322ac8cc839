"""`jdl compress`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.errors import UserError


def compress(
    directories: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")],
    /,
    sparsity: tuple[float, ...] = (),
    metric: str = "test.accuracy",
    rows: int = 256,
) -> None:
    """Compare networks in score, size and time, with fp32 and int8 weights, whole and pruned.

    Each row is a network as `jdl export` writes it, scored with these very weights; changes are
    from the first. Zeros shorten a file that is compressed, and save no time.

    Args:
        directories: run directories, whose experiment.py is executed: trust it like a script.
        sparsity: shares of weights to prune without further training, such as 0.5 0.9.
        metric: SPLIT.NAME of the score.
        rows: of the batches that are timed.
    """
    from jdl.inference import compress as compression
    from jdl.inference.export import require
    from jdl.report.comparison import aligned
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    require()
    split, dot, name = metric.partition(".")
    if not directories:
        raise UserError("compress takes one run directory or more")
    if not dot:
        raise UserError(f"--metric is SPLIT.NAME, such as test.accuracy, not {metric}")
    if rows < 1:
        raise UserError(f"--rows must be at least 1, not {rows}")
    runs = [restore_run(each, read_run(each).experiment) for each in directories]
    found = [*compression.variants(runs, split, name, sparsity, rows)]
    print(aligned(compression.table(found, metric)))
