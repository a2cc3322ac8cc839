"""`jdl translate`."""

import dataclasses
import sys

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def translate(
    directory: RunDirectory,
    /,
    text: tuple[str, ...] = (),
    num_beams: int = 4,
    alpha: float = 0.6,
    experiment: OwnFile = None,
) -> None:
    """Translate texts, or the lines of the standard input, with the model of a run.

    Prints a line for each text.

    Args:
        text: one or several texts (default: each line of the standard input).
        num_beams: partial translations kept by beam search; 1 is greedy and fastest.
        alpha: exponent of the length penalty; larger values favor longer translations.
    """
    from jdl.inference.translate import check_translation_run, translate
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    recorded = read_run(directory, experiment)
    check_translation_run(directory, recorded.experiment)
    task = dataclasses.replace(recorded.experiment.task, num_beams=num_beams, alpha=alpha)
    changed = dataclasses.replace(recorded.experiment, task=task)
    run = restore_run(directory, changed)
    warn_if_unfinished(directory, run)
    for line in translate(run, text or (line.rstrip("\r\n") for line in sys.stdin)):
        print(" ".join(line.split("\n")), flush=True)
