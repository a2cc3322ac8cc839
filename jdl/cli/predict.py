"""`jdl predict`."""

import functools
import sys
import time
from pathlib import Path
from typing import Annotated, Any

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
    coco: Path | None = None,
    masks: Path | None = None,
    draw: Path | None = None,
    experiment: OwnFile = None,
) -> int:
    """Predict from images, videos, sounds, CSV files or texts; prints a line of JSON for each.

    Files are read like those of the run's data set: an image is one example, and so is a sound
    (extra `audio`), or a frame of a video (extra `video`); a table holds one in each row and needs
    only the input columns; a text file is one text, a CSV file has a column of texts; the rows
    after the last of a time series are forecast. The directory of several seeds predicts the mean
    of all. A folder stands for the files in it. A file that cannot be read is reported and skipped;
    the exit code is then 1, or 2 if no file could be read. For videos the number of frames per
    second, reading included, is printed to standard error.

    Args:
        files: to predict from, or folders of such files.
        coco: write the boxes of a detector into this COCO JSON file, in pixels of the pictures.
        masks: write the masks of a segmentation into this folder, as PNG files of palette indices.
        draw: write the pictures with boxes or masks drawn over them into this folder, or the images
            that the task predicts.
    """
    from jdl.inference.ensemble import open_ensemble, predict_mean, seed_directories
    from jdl.inference.outputs import PictureOutputs
    from jdl.inference.predict import expand, predict_files
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if not files:
        raise UserError("predict needs at least one FILE (see `jdl predict --help`)")
    settings: dict[str, Any] = {}
    if seeds := seed_directories(directory):
        runs = open_ensemble(seeds, experiment)
        run, settings["predict"] = runs[0], functools.partial(predict_mean, runs)
    else:
        run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    failed = []

    def report(error: UserError) -> None:
        failed.append(error)
        print(f"jdl: {error}", file=sys.stderr)

    files = tuple(expand(files))
    frames, begun = 0, time.perf_counter()
    read = run.experiment.data.reader()
    writer = None
    if coco or masks or draw:
        writer = PictureOutputs(run, read, coco, masks, draw)
        settings["output"] = writer
    for line in predict_files(run, read, files, report, **settings):
        print(to_json(line), flush=True)
        frames += "frame" in line
    if writer is not None and len(failed) < len(files):
        writer.close()
    if frames:
        seconds = time.perf_counter() - begun
        rate = f"{frames / seconds:.1f} frames/s"
        print(f"{frames} frames in {seconds:.2f} s: {rate}", file=sys.stderr)
    return min(len(failed), 1) + (len(failed) == len(files))
