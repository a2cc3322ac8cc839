"""`jdl predict`."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.errors import UserError
from jdl.files import to_json


def predict(
    directory: RunDirectory,
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(at least one)")
    ],
    /,
    experiment: OwnFile = None,
) -> int:
    """Predict from images, CSV files or texts; prints a line of JSON for each example.

    Files are read like those of the run's data set: an image is one example; a table holds one in
    each row and needs only the input columns; a text file is one text, a CSV file has a column of
    texts; the rows after the last of a time series are forecast. A file that cannot be read is
    reported and skipped; the exit code is then 1, or 2 if no file could be read.

    Args:
        files: to predict from.
    """
    from jdl.inference.predict import predict_files
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if not files:
        raise UserError("predict needs at least one FILE (see `jdl predict --help`)")
    recorded = read_run(directory, experiment)
    run = restore_run(directory, recorded.experiment)
    warn_if_unfinished(directory, run)
    failed = []

    def report(error: UserError) -> None:
        failed.append(error)
        print(f"jdl: {error}", file=sys.stderr)

    for line in predict_files(run, run.experiment.data.reader(), files, report):
        print(to_json(line), flush=True)
    return min(len(failed), 1) + (len(failed) == len(files))
