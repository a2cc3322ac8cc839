"""`jdl reproduce`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile
from jdl.cli.train import dated
from jdl.errors import UserError


def reproduce(
    directory: Annotated[Positional[Path | None], arg(metavar="RUN")] = None,
    /,
    all: bool = False,
    workdir: Path | None = None,
    tolerance: float = 0.005,
    experiment: OwnFile = None,
) -> int:
    """Repeat a finished run and compare the results; --all: every experiment with its Expect line.

    The exit code is 0 if the parameters are equal bit for bit; or if versions, devices or flags
    differ and every metric is within the tolerance. Executes the directory's experiment.py: trust a
    run directory like a script.

    Args:
        directory: a run directory.
        all: run every experiment with the seeds of its Expect: line and compare with that line.
        workdir: of the new runs (default: beside the directory, or runs/reproduce-DATE).
        tolerance: largest accepted difference of a metric.
    """
    if all == (directory is not None):
        raise UserError("reproduce takes either a run directory or --all")
    if directory is None:
        return _reproduce_all(workdir or dated(Path("runs") / "reproduce"), tolerance)
    from jdl.analysis import reproduce as again

    target = workdir or dated(directory.with_name(f"{directory.name}-again"))
    found = again.reproduce(directory, target, experiment)
    for name, (old, new) in found.metrics.items():
        print(f"{name}: {old!r} recorded, {new!r} now")
    print("parameters: " + ("equal, bit for bit" if found.equal else "not equal"))
    for line in found.surroundings:
        print(f"differs: {line}")
    return 0 if found.within(tolerance) else 1


def _reproduce_all(workdir: Path, tolerance: float) -> int:
    """Prints each experiment's metric beside the expected one; 1 if one is out of tolerance."""
    from jdl.analysis.reproduce import reproduce_all

    failed = False
    for check in reproduce_all(workdir):
        if check.note:
            print(f"{check.name}: skipped: {check.note}", flush=True)
            continue
        kept = abs(check.reached - check.expected) <= tolerance
        failed |= not kept
        numbers = f"{check.metric} {check.reached:.4f}, expected {check.expected:.4f}"
        print(f"{check.name}: {numbers}{'' if kept else '  OUT OF TOLERANCE'}", flush=True)
    return int(failed)
