"""Ablation of the operations in `jdl.ops`: `python -m benchmarks.ablation [WORKLOAD ...]`.

Times jdl's training step and the same step with one operation in its plain definition.
"""

import json as json_lib
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from benchmarks.__main__ import ask_machine, check, open_rows
from benchmarks.measure import Failed, Protocol, measure
from benchmarks.report import heading, table
from benchmarks.workloads import Workload, gru, workloads
from jdl.errors import UserError

USED = {
    "cnn": ("conv_general_dilated", "max_pool"),
    "lstm": ("lstm",),
    "gru": ("gru",),
    "transformer": ("attention", "dot_general", "linear_cross_entropy"),
}
"""By workload, the operations that its step has."""


def kind(workload: Workload) -> str:
    """The kind of a workload, which determines its operations."""
    return workload.changes.get("model.cell", workload.name)


def main(chosen: Positional[tuple[str, ...]] = (), /, json: Path | None = None) -> None:
    """Times steps with and without each operation, in interleaved blocks.

    Args:
        chosen: cnn, lstm, gru, transformer (default: all four).
        json: a file for the rows, one JSON object a line.
    """
    check(chosen, tuple(USED), "workload")
    file = open_rows(json)
    machine = ask_machine()
    print(heading(machine))
    for workload in (*workloads(machine["platform"] != "cpu"), gru()):
        if kind(workload) in (chosen or USED):
            names = ["jdl", *(f"jdl-plain_{name}" for name in USED[kind(workload)])]
            rows = measure(workload, names, machine, "fp32", Protocol(curve=0))
            for row in rows:
                print(json_lib.dumps(row), file=file, flush=True)
            print(table(rows), flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.ablation")
    except (UserError, Failed) as mistake:
        sys.exit(f"benchmarks: {mistake}")
