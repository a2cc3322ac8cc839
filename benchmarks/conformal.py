"""Calibration and conformal sets of trained runs: coverage, sizes, worst class and group.

    python -m benchmarks.conformal RUN [RUN ...] [--groups sex,race]

Each run needs a calibration split (`data.calibration_fraction`); calibrates it as `jdl calibrate`
does, by temperature, and prints a row. Groups are audited in runs whose data has them.
"""

import argparse
from pathlib import Path

from jdl.audit.calibrate import calibrate, evaluate_sets
from jdl.audit.groups import intersection, read_columns
from jdl.audit.report import predict_split
from jdl.errors import UserError
from jdl.trainer.opening import restore_run
from jdl.trainer.record import read_run


def main() -> None:
    """Prints a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--groups", default="sex,race")
    parser.add_argument("--method", default="temperature")
    parser.add_argument("--marginal", action="store_true")
    parser.add_argument("--min-count", type=int, default=100)
    args = parser.parse_args()
    header = "ECE before, after, coverage, worst class, worst group, mean size, empty"
    print(f"{'run':28} {header}")
    for directory in args.runs:
        experiment = read_run(directory).experiment
        settings = {"method": args.method, "per_class": not args.marginal}
        found = calibrate(directory, experiment, **settings)["test"]
        run = restore_run(directory, experiment)
        labels, p = predict_split(run, "test")
        groups = {}
        try:
            columns = read_columns(run, "test", args.groups.split(","))
            further = [intersection(columns)] if len(columns) > 1 else []
            for column in (*columns, *further):
                members = {n: column.codes == i for i, n in enumerate(column.groups)}
                groups |= {n: own for n, own in members.items() if own.sum() >= args.min_count}
        except UserError:
            pass  # the data has no such columns
        names = tuple(map(str, range(p.shape[1])))
        sets = evaluate_sets(labels, run.experiment.task.conformal(p), names, groups)
        worst_class = sets["coverage_by_class"][sets["worst_class"]]
        group = "-"
        if groups:
            group = f"{sets['coverage_by_group'][sets['worst_group']]:.4f} ({sets['worst_group']})"
        print(
            f"{directory.name:28} {found['before']['ece']:.4f} {found['after']['ece']:.4f} "
            f"{sets['coverage']:.4f} {worst_class:.4f} {group} {sets['mean_size']:.3f} "
            f"{sets['empty']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
