"""`jdl curve`."""

from pathlib import Path
from typing import Literal

from jdl.cli.arguments import ExperimentName, Overrides
from jdl.cli.train import dated


def curve(
    experiment: ExperimentName,
    /,
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
    seeds: int = 1,
    same: Literal["steps", "epochs"] = "steps",
    workdir: Path | None = None,
    png: Path | None = None,
    *,
    overrides: Overrides = None,
) -> None:
    """Train on parts of the training data, and print the scores by the number of examples.

    Shows whether more data would help. Fields are set by their path as for `train`.

    Args:
        fractions: shares of the training split; a smaller part is within a larger.
        seeds: runs of each, of which mean, least and most are shown.
        same: steps trains on each part for as many steps as on all data, epochs for as many passes.
        workdir: directory of the runs (default: runs/NAME-curve-DATE); finished ones are not
            repeated.
        png: draw the scores into this file.
    """
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override
    from jdl.report import plots
    from jdl.report.comparison import aligned
    from jdl.report.data_curve import cells, lines
    from jdl.sweeps.data_curve import data_curve

    if png is not None:
        plots.require()  # reports a missing Matplotlib before the training
    file = load(experiment)
    changed = override(file.experiment, overrides or {})
    workdir = workdir or dated(Path("runs") / f"{file.name}-curve")
    points = data_curve(
        changed, fractions, seeds, workdir, same=same, file=file, overrides=overrides
    )
    print(aligned(cells(points)))
    if png is not None:
        png.write_bytes(plots.png(plots.data_curve(lines(points))))
    print(f"{workdir} holds the runs")
