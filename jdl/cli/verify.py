"""`jdl verify`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.errors import UserError
from jdl.files import to_json


def verify(
    directory: RunDirectory,
    file: Annotated[Positional[Path], arg(metavar="A", help="file to compare.")],
    others: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="B...", help_behavior_hint="(at least one)")
    ],
    /,
    threshold: float | None = None,
    experiment: OwnFile = None,
) -> None:
    """Tell whether files show the same class, such as a person; prints a line of JSON for each B.

    `similarity` is the cosine similarity of the embeddings of A and B, from -1 to 1, and `same` is
    true from the threshold on. The run's task is Embedding; files are read like those of its data.

    Args:
        others: files to compare with A, or folders of such files.
        threshold: least similarity of the same class (default: the equal_error_threshold that the
            run measured on its validation or else test split).
    """
    from jdl.inference.predict import expand
    from jdl.inference.verify import known_threshold, similarities
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if not others:
        raise UserError("verify needs two files, A and B (see `jdl verify --help`)")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold is a cosine similarity from -1 to 1, not {threshold}")
    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    limit = known_threshold(run) if threshold is None else threshold
    files = expand(others)
    found = similarities(run, run.experiment.data.reader(), file, files)
    for other, similarity in zip(files, found, strict=True):
        line = {"file": str(file), "other": str(other), "similarity": round(similarity, 6)}
        print(to_json({**line, "same": similarity >= limit, "threshold": round(limit, 6)}))
