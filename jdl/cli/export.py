"""`jdl export`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.typing import Platform


def export(
    directory: RunDirectory,
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    platforms: tuple[Platform, ...] = (),
    weights: Literal["fp32", "int8"] = "fp32",
    experiment: OwnFile = None,
) -> None:
    """Export a run's prediction and weights as StableHLO, which JAX runs without jdl.

    Replaces an earlier export, never another file.

    Args:
        file: to write, such as digits.stablehlo.
        platforms: that the file can run on, each with its own form of operations; none: cpu, cuda
            and the current one.
        weights: int8 makes the file up to four times smaller: kernels of one byte a weight, with a
            scale for each output channel (`jdl compress` measures what that costs).
    """
    from jdl.inference.export import check_target, export_prediction, signature, write_export
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    check_target(file)
    recorded = read_run(directory, experiment)
    run = restore_run(directory, recorded.experiment)
    warn_if_unfinished(directory, run)
    function = export_prediction(run, platforms, weights=weights)
    write_export(file, function)
    print(f"{file}: {signature(function)}")
