"""`jdl export`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def export(
    directory: RunDirectory,
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    experiment: OwnFile = None,
) -> None:
    """Export a run's prediction and weights as StableHLO, which JAX runs without jdl.

    Replaces an earlier export, never another file. Executes the directory's experiment.py: trust a
    run directory like a script.

    Args:
        file: to write, such as digits.stablehlo.
    """
    from jdl.inference.export import check_target, exported, signature, write
    from jdl.inference.predict import open_to_predict
    from jdl.trainer.record import read_run

    check_target(file)
    recorded = read_run(directory, experiment)
    run = open_to_predict(directory, recorded.experiment)
    warn_if_unfinished(directory, run)
    function = exported(run)
    write(file, function)
    print(f"{file}: {signature(function)}")
