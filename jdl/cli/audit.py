"""`jdl audit`."""

from typing import Any, Literal

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def audit(
    directory: RunDirectory,
    /,
    group: tuple[str, ...] = (),
    split: str = "test",
    positive: str = "",
    min_count: int = 30,
    replicas: int = 1000,
    thresholds: Literal["demographic_parity", "equal_opportunity"] | None = None,
    experiment: OwnFile = None,
) -> None:
    """Compare a classifier's scores between groups of examples, with intervals and tests.

    Groups are columns that the data keeps beside the inputs, or any column of a table's file; of
    several also their intersections. Prints accuracy, cross-entropy, calibration error, and the
    rates of a class: selection, true and false positives, precision; and the largest differences
    between groups, which are demographic parity, equal opportunity, equalized odds and predictive
    parity. Writes all of it to RUN/audit.json.

    Args:
        group: columns, separated by commas or spaces.
        split: train, validation, calibration or test.
        positive: class whose rates are compared (default: of two the second, of more all).
        min_count: examples that a group needs to be scored.
        replicas: bootstrap samples for the intervals.
        thresholds: fit a threshold of each group on the calibration split for this criterion.
    """
    from jdl.audit import audit as compare
    from jdl.audit.text import audit_lines
    from jdl.errors import UserError
    from jdl.files import RunDirectory, write_json
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    names = tuple(name for word in group for name in word.split(",") if name)
    if not names:
        raise UserError("jdl audit needs --group COLUMN[,COLUMN], columns of the data")
    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    settings: dict[str, Any] = {"positive": positive, "min_count": min_count, "replicas": replicas}
    found = compare(run, names, split, thresholds=thresholds, **settings)
    write_json(RunDirectory(directory).audit, found.to_json())
    for line in audit_lines(found):
        print(line)
