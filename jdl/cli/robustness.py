"""`jdl robustness`."""

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def robustness(
    directory: RunDirectory,
    /,
    split: str = "test",
    epsilon: float = 0.03,
    severity: int = 3,
    samples: int = 20,
    limit: int = 2000,
    experiment: OwnFile = None,
) -> None:
    """Score a classifier under attacks and corruptions, and averages of several predictions.

    Prints a row for the split as it is; for attacks by the gradient, FGSM and PGD; for each
    corruption; for Monte Carlo dropout, if the model has dropout; and for the ensemble of all
    seeds, if the run is one of `jdl train --seeds`. Besides accuracy, cross-entropy and calibration
    error there is the area under the curve of telling changed examples by their low confidence.

    Args:
        split: train, validation, calibration or test.
        epsilon: largest change of a value by an attack, as a share of the values' range, of tables
            of the column's.
        severity: of the corruptions, from 1 to 5.
        samples: predictions that Monte Carlo dropout averages.
        limit: examples at most.
    """
    import dataclasses

    from jdl.audit.robustness import robustness as score
    from jdl.audit.text import table_lines
    from jdl.files import RunDirectory, write_json
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    settings = {"epsilon": epsilon, "severity": severity, "samples": samples, "limit": limit}
    rows = [dataclasses.asdict(row) for row in score(run, split, **settings)]
    write_json(RunDirectory(directory).robustness, {"split": split, **settings, "rows": rows})
    names = list(rows[0])
    shown = [[row["name"], *(f"{row[n]:.4f}" if row[n] == row[n] else "-" for n in names[1:])]
             for row in rows]  # fmt: skip
    for line in table_lines([["", *names[1:]], *shown]):
        print(line)
