"""`jdl transcribe`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.errors import UserError
from jdl.files import to_json


def transcribe(
    directory: RunDirectory,
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(at least one)")
    ],
    /,
    beam_width: int | None = None,
    prior_weight: float | None = None,
    experiment: OwnFile = None,
) -> int:
    """Transcribe sound files with the model of a run; prints a line of JSON for each.

    It has the text, and each word with the seconds of its start and end. Files are WAV, FLAC, OGG,
    MP3 or AIFF of any rate and length; a folder stands for the files in it. A file that cannot be
    read is reported and skipped; the exit code is then 1, or 2 if no file could be read.

    Args:
        files: to transcribe, or folders of such files.
        beam_width: prefixes kept by beam search; 1 is greedy (default: that of the run).
        prior_weight: exponent of the n-gram prior of the training transcripts in beam search
            (default: that of the run).
    """
    from jdl.inference.predict import expand
    from jdl.inference.transcribe import check_speech_run, transcribe
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if not files:
        raise UserError("transcribe needs at least one FILE (see `jdl transcribe --help`)")
    recorded = read_run(directory, experiment)
    check_speech_run(directory, recorded.experiment)
    given = {"beam_width": beam_width, "prior_weight": prior_weight}
    changes = {name: value for name, value in given.items() if value is not None}
    task = dataclasses.replace(recorded.experiment.task, **changes)
    run = restore_run(directory, dataclasses.replace(recorded.experiment, task=task))
    warn_if_unfinished(directory, run)
    failed = []

    def report(error: UserError) -> None:
        failed.append(error)
        print(f"jdl: {error}", file=sys.stderr)

    paths = expand(files)
    for found in transcribe(run, paths, report):
        print(to_json(found), flush=True)
    return min(len(failed), 1) + (len(failed) == len(paths))
