"""Profiles of training steps: `python -m benchmarks.profiles [WORKLOAD ...]`.

The most expensive operations of plain Flax's step and of jdl's, on the same data and weights.
Times are those of XLA's thunks, which may overlap, and profiling itself slows a step.
"""

import collections
import json
import os
import re
import sys
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from benchmarks.__main__ import WORKLOADS, ask_machine, check
from benchmarks.measure import Failed, Worker
from benchmarks.report import heading
from benchmarks.workloads import Workload, workloads
from jdl.errors import UserError

SECONDS = 1.0
"""Of steps that are profiled."""

OVERHEAD = re.compile(r"^(ThunkExecutor|PjitFunction|end: |Slinky|CommonPjRt|ParseArg|cond|while)")
"""Names of what contains other events, or waits for them."""


def make(workload: Workload, threads: int, folder: str) -> None:
    """Writes the case of both: the bare step, also for workloads that time the loop."""
    maker = Worker("jdl", threads)
    try:
        maker.ask("make", folder=folder, dtype="fp32", threads=threads, **workload.key)
    finally:
        maker.close()
    case = Path(folder) / "case.json"
    case.write_text(json.dumps({**json.loads(case.read_text()), "loop": False}))


def profile(
    workload: Workload, implementation: str, threads: int, folder: str
) -> tuple[float, dict[str, Any]]:
    """Milliseconds of a step, and of each operation in it, in its own process."""
    dump = Path(folder) / implementation
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_hlo_as_text"
    worker = Worker(implementation, threads, XLA_FLAGS=flags)
    try:
        worker.ask("load", implementation=implementation, folder=folder, **workload.key)
        worker.ask("run", steps=2)
        steps = max(2, round(SECONDS / worker.ask("run", steps=1)))
        second = worker.ask("run", steps=steps) / steps
        events = worker.ask("profile", steps=steps)
    finally:
        worker.close()
    names = describe(dump, events)
    costs: dict[str, Any] = collections.defaultdict(lambda: [0.0, 0.0])
    for name, (milliseconds, count) in events.items():
        if not OVERHEAD.match(name):
            cost = costs[names.get(name, re.sub(r"[.\d]+$", "", name))]
            cost[0] += milliseconds / steps
            cost[1] += count / steps
    return second * 1e3, costs


def describe(dump: Path, events: Container[str]) -> dict[str, str]:
    """Descriptions of instructions by name, in the compiled program that has the events."""
    best: dict[str, str] = {}
    text = ""
    for path in dump.glob("*after_optimizations.txt"):
        found = dict(re.findall(r"\n\s+(?:ROOT )?%(\S+) = (.*)", path.read_text()))
        found = {name: line for name, line in found.items() if name in events}
        if len(found) > len(best):
            best, text = found, path.read_text()
    bodies = dict(re.findall(r"\n(%\S+) \([^\n]*\{\n(.*?)\n\}", text, re.DOTALL))
    return {name: _purpose(line, bodies) for name, line in best.items()}


def _purpose(line: str, bodies: dict[str, str]) -> str:
    called = re.search(r"calls=(%[\w.\-]+)", line)
    body = bodies.get(called[1], "") if called else line
    product = re.search(r" (dot|convolution)\((%[\w.\-]+), (%[\w.\-]+)\)", body)
    if product and called:
        shape = dict(re.findall(r"(%[\w.\-]+) = (\w+\[[\d,]*\])", body))
        return f"{product[1]} {shape.get(product[2], '')} {shape.get(product[3], '')}"
    source = re.search(r'op_name="([^"]*)"', line)
    parts = re.sub(r"\bjit\(\w+\)/|_\d+\b", "", source[1]).split("/") if source else []
    kind = re.search(r"\} (\w+)|\] (\w+)", line)
    return "/".join(parts[-3:]) or (kind[1] or kind[2] if kind else line[:40])


def lines(workload: Workload, threads: int, top: int) -> Iterator[str]:
    """Formats one workload."""
    with tempfile.TemporaryDirectory() as folder:
        make(workload, threads, folder)
        for title, name in (("before", "flax"), ("after", "jdl")):
            step, costs = profile(workload, name, threads, folder)
            yield f"\n{workload.name} {workload.size}, {title} ({name}): {step:.2f} ms a step"
            order = sorted(costs.items(), key=lambda item: -item[1][0])
            for operation, (milliseconds, count) in order[:top]:
                yield f"{milliseconds:10.2f} ms in {count:6.1f}  {operation}"


def main(
    chosen: Positional[tuple[str, ...]] = (), /, top: int = 5, out: Path | None = None
) -> None:
    """Prints the costliest operations before and after.

    Args:
        chosen: names of workloads, such as `transformer` (default: all).
        top: how many operations.
        out: a file for the same text.
    """
    check(chosen, WORKLOADS, "workload")
    machine = ask_machine()
    text = [heading(machine)]
    print(text[0])
    for workload in workloads(machine["platform"] != "cpu"):
        if workload.name in (chosen or WORKLOADS):
            for line in lines(workload, machine["cores"], top):
                print(line, flush=True)
                text.append(line)
    if out:
        out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.profiles")
    except (UserError, Failed) as mistake:
        sys.exit(f"benchmarks: {mistake}")
