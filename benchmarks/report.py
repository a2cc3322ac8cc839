"""The README's table and chart of a results file.

python -m benchmarks.report FILE [--chart PNG] [--readme README.md]
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from jdl.errors import UserError

Row = Mapping[str, Any]


def heading(machine: Mapping[str, Any]) -> str:
    """The machine and the versions in one line."""
    versions = machine["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax"))
    return f"{machine['device']}; {named}"


def table(rows: Sequence[Row]) -> str:
    """A row per implementation: median step, rate, share of the ceiling, and jdl's ratio to it."""
    lines = []
    for row in rows:
        name = f"{row['workload']} {row['size']}".ljust(28) + row["implementation"].ljust(21)
        if "error" in row:
            lines.append(f"{name}failed: {row['error']}")
            continue
        step = row["step_seconds"]
        speed, unit = rate(row)
        text = f"{name}{1e3 * step['median']:9.2f} ms {shown(speed):>10} {unit}/s"
        text += f"  {100 * row.get('mfu_measured', 0):3.0f} % of ceiling"
        found = row.get("ratio_to_best_peer") or row.get("ratio_of_jdl")
        if row["implementation"] == "jdl":
            if found:
                text += f"  {interval(found)} of {row['best_peer']}" + (
                    "  AHEAD" if found["low"] > 1 else ""
                )
        elif row["parity"]["passed"]:
            text += f"  jdl is {interval(found)}" if found else ""
        else:
            text += "  VOID: " + ", ".join(
                f"{name} differs by {value:.1e}"
                for name, value in row["parity"]["differences"].items()
            )
        lines.append(text + ("  (quick)" if row["quick"] else ""))
    return "\n".join(lines)


def rate(row: Row) -> tuple[float, str]:
    """Tokens a second where an item has several, else items."""
    if row.get("tokens_per_second"):
        return row["tokens_per_second"], "tokens"
    return row["items_per_second"], "items"


def shown(speed: float) -> str:
    """Formats a rate as a whole number, a small one with one decimal."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def interval(found: Mapping[str, float]) -> str:
    """Formats a ratio with its 95 % interval."""
    return f"{found['median']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def read(path: Path) -> list[Row]:
    """The rows of a results file.

    Raises:
      UserError: it cannot be read, or is of another format.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    known = {"workload", "size", "implementation", "device"}
    if not rows or not all(isinstance(row, dict) and known <= row.keys() for row in rows):
        raise UserError(f"{path} does not hold rows of `python -m benchmarks --json`")
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The README's table: a line per workload, jdl beside every peer."""
    lines = [
        "| workload | jdl | best peer | jdl is faster by, 95 % interval | others, times slower |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["implementation"] == "jdl"):
        if "ratio_to_best_peer" not in row:
            continue
        peers = [
            other
            for other in rows
            if (other["workload"], other["size"]) == (row["workload"], row["size"])
            and "ratio_of_jdl" in other
        ]
        best = next(p for p in peers if p["implementation"] == row["best_peer"])
        (speed, unit), (peer, _) = rate(row), rate(best)
        rest = ", ".join(
            f"{p['implementation']} {p['ratio_of_jdl']['median']:.2f}" for p in peers if p != best
        )
        lines.append(
            f"| {row['workload']}, {row['size']}, batch {row['batch']} | {shown(speed)} {unit}/s "
            f"| {best['implementation']} {shown(peer)} | {interval(row['ratio_to_best_peer'])} "
            f"| {rest} |"
        )
    return "\n".join(lines)


def chart(rows: Sequence[Row], path: Path) -> None:
    """Rates relative to jdl's, a group of bars per workload, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [row for row in rows if "error" not in row and row["parity"]["passed"]]
    groups = list(dict.fromkeys((row["workload"], row["size"]) for row in good))
    names = list(dict.fromkeys(row["implementation"] for row in good))
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for index, name in enumerate(names):
        places, heights = [], []
        for place, group in enumerate(groups):
            mine = {r["implementation"]: r for r in good if (r["workload"], r["size"]) == group}
            if name in mine and "jdl" in mine:
                places.append(place + 0.8 * index / len(names))
                heights.append(rate(mine[name])[0] / rate(mine["jdl"])[0])
        axes.bar(places, heights, 0.8 / len(names), label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([i + 0.4 for i in range(len(groups))], [f"{w}\n{s}" for w, s in groups])
    axes.set_ylabel("training throughput, jdl = 1")
    axes.set_title(good[0]["device"])
    axes.legend(ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main(
    file: Positional[Path], /, chart_file: Path | None = None, readme: Path | None = None
) -> None:
    """Prints the table; optionally draws the chart and updates the README's table.

    Args:
        file: what `python -m benchmarks --json` wrote.
        chart_file: a PNG for the chart (needs matplotlib).
        readme: a file whose table between the two marks is updated.
    """
    rows = read(file)
    print(table(rows))
    if chart_file:
        chart(rows, chart_file)
    if readme:
        renew(readme, "benchmarks", markdown(rows))


def between(file: Path, name: str) -> str:
    """The text between the two marks of this name in a Markdown file.

    Raises:
      UserError: the file has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    _, found, rest = file.read_text().partition(begin)
    if not found or end not in rest:
        raise UserError(f"{file} has no place for the table, {begin.strip()} ... {end}")
    return rest.partition(end)[0]


def renew(file: Path, name: str, text: str) -> None:
    """Replaces the text between the two marks of this name in a Markdown file.

    Raises:
      UserError: as `between`.
    """
    begin = f"<!-- {name}: begin -->\n"
    old = begin + between(file, name)
    file.write_text(file.read_text().replace(old, f"{begin}{text}\n", 1))


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.report")
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
