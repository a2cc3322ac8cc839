"""The commands that use what a run learned: `jdl evaluate`, `jdl predict`, `jdl export`."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.errors import UserError
from jdl.files import to_json


def evaluate(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    /,
    split: str | None = None,
    experiment: Path | None = None,
) -> None:
    """Score a run on a whole split, with the weights that it ended with.

    Runs the directory's experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        split: train, validation or test (default: test; validation where the run kept away from
            test, as trials of a search do).
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis.reproduce import read_run
    from jdl.trainer.api import open_run

    recorded = read_run(directory, experiment)
    run = open_run(directory, recorded.experiment, recorded.file.name)
    if split is None:
        scored = run.result.get("metrics", {"test": {}})
        split = "test" if "test" in scored else "validation"
    scores, host_metrics = run.score(split)
    signatures = {"signatures": dict(host_metrics.signatures)} if host_metrics else {}
    print(to_json({"split": split, **scores, **signatures}))


def predict(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(at least one)")
    ],
    /,
    experiment: Path | None = None,
) -> int:
    """Predict from images, CSV files or texts; each example becomes a line of JSON.

    A file is read as the run's data set reads its own: an image is one example; a table holds one
    a row, and needs the input columns alone; a text file is one text, a CSV file has a column of
    them; of a series, what follows its last row is forecast. A file that cannot be used is named,
    the others go on, and the exit code is 1, or 2 where none was left. Runs the directory's
    experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        files: to predict from.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis.reproduce import read_run
    from jdl.inference.predict import open_to_predict, predict_files

    if not files:
        raise UserError("predict needs at least one FILE (`jdl predict --help` says more)")
    recorded = read_run(directory, experiment)
    run = open_to_predict(directory, recorded.experiment, recorded.file.name)
    tell_unfinished(directory, bool(run.result))
    reader = run.experiment.data.reader()
    failed = []

    def complain(error: UserError) -> None:
        failed.append(error)
        print(f"jdl: {error}", file=sys.stderr)

    for line in predict_files(run, reader, files, complain):
        print(to_json(line), flush=True)
    return min(len(failed), 1) + (len(failed) == len(files))


def export(
    directory: Annotated[Positional[Path], arg(metavar="RUN")],
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    experiment: Path | None = None,
) -> None:
    """Write a run's prediction, weights included, as StableHLO, which JAX runs without jdl.

    A file that holds an earlier export is replaced; any other is left alone. Runs the directory's
    experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        file: to write, such as digits.stablehlo.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis.reproduce import read_run
    from jdl.inference.export import check_target, exported, signature, write
    from jdl.inference.predict import open_to_predict

    check_target(file)
    recorded = read_run(directory, experiment)
    run = open_to_predict(directory, recorded.experiment, recorded.file.name)
    tell_unfinished(directory, bool(run.result))
    function = exported(run)
    write(file, function)
    print(f"{file}: {signature(function)}")


def tell_unfinished(directory: Path, finished: bool) -> None:
    """Says, on the standard error, where a run's weights are not its last."""
    if not finished:
        print(f"{directory} is not finished: this is its newest checkpoint", file=sys.stderr)
