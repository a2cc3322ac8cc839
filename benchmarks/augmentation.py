"""The cost of augmentation: `python -m benchmarks.augmentation`.

Times the training step of `cats_vs_dogs_augmented` with and without augmentation.
"""

import json as json_lib
import sys
from pathlib import Path
from typing import Any

import tyro

from benchmarks.__main__ import ask_machine, open_rows
from benchmarks.measure import QUICK, Failed, Protocol, measure
from benchmarks.report import heading, table
from benchmarks.workloads import augmented
from jdl.errors import UserError

GOAL = 0.1
"""Largest share of the step that augmentation may take on an accelerator."""


def share(ratio: dict[str, float]) -> dict[str, float]:
    """The share of augmentation in a step, from the ratio of plain to augmented seconds."""
    return {
        "median": 1 - ratio["median"],
        "low": max(1 - ratio["high"], 0.0),
        "high": 1 - ratio["low"],
    }


def main(json: Path | None = None, quick: bool = False) -> None:
    """Times steps with and without `RandomAffine`, in interleaved blocks.

    Args:
        json: a file for the rows, one JSON object a line.
        quick: fewer and shorter rounds.
    """
    file = open_rows(json)
    machine = ask_machine()
    print(heading(machine))
    accelerator = machine["platform"] != "cpu"
    workload = augmented(256 if accelerator else 32)
    protocol = QUICK if quick else Protocol(curve=0)
    rows = measure(workload, ["jdl", "jdl-plain_resample"], machine, "fp32", protocol)
    if "ratio_to_best_peer" in rows[0]:
        rows[0]["augmentation_share"] = share(rows[0]["ratio_to_best_peer"])
    for row in rows:
        print(json_lib.dumps(row), file=file, flush=True)
    print(table(rows))
    print(sentence(rows[0], accelerator))


def sentence(row: dict[str, Any], accelerator: bool) -> str:
    """Formats the share, on an accelerator with the goal."""
    if "augmentation_share" not in row:
        return f"the share is not known: {row.get('error', 'parity failed')}"
    found = {name: 100 * value for name, value in row["augmentation_share"].items()}
    text = "augmentation takes {median:.1f} % [{low:.1f}, {high:.1f}] of the step".format(**found)
    if not accelerator:
        return text
    kept = row["augmentation_share"]["median"] < GOAL
    return f"{text}; the goal, below {100 * GOAL:.0f} %, is {'kept' if kept else 'missed'}"


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.augmentation")
    except (UserError, Failed) as mistake:
        sys.exit(f"benchmarks: {mistake}")
