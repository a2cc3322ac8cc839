"""Regressions between two results files: `python -m benchmarks.compare OLD NEW`."""

import sys
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from benchmarks.report import Row, read
from jdl.errors import UserError

NOISE = 0.07
"""Smaller changes say nothing, whatever the quartiles."""


def compare(old: list[Row], new: list[Row]) -> list[tuple[str, float, bool]]:
    """Name, ratio of new to old seconds, and whether it is slower beyond noise, for each row.

    Beyond noise: the median is more than `NOISE` worse, and the quartiles do not overlap.
    """

    def key(row: Row) -> Any:
        return tuple(row[k] for k in ("workload", "size", "implementation", "dtype", "batch"))

    before = {key(row): row["step_seconds"] for row in old if "step_seconds" in row}
    found = []
    for row in new:
        if key(row) in before and "step_seconds" in row:
            then, now = before[key(row)], row["step_seconds"]
            ratio = now["median"] / then["median"]
            slower = ratio > 1 + NOISE and now["q25"] > then["q75"]
            found.append((" ".join(map(str, key(row))), ratio, slower))
    return found


def main(old: Positional[Path], new: Positional[Path], /) -> int:
    """Prints every row that both files have; exit code 1 if one is slower beyond noise."""
    rows = compare(read(old), read(new))
    if not rows:
        raise UserError(f"{old} and {new} have no row in common")
    for name, ratio, slower in rows:
        print(f"{name}: {ratio:.2f} of the time{'  SLOWER' if slower else ''}")
    return int(any(slower for _, _, slower in rows))


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m benchmarks.compare"))
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
