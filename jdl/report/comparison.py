"""Compares runs: differing fields, metrics, loss curves."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdl.files import RunDirectory, read_rows
from jdl.report import plots
from jdl.report.learning_curves import points
from jdl.report.page import Folder, paragraph, shown, table
from jdl.typing import Json

ABSENT = "-"
"""In the place of what a run does not have."""

SPLITS = ("test", "validation")
"""Whose metrics are compared."""


@dataclass(frozen=True)
class Entry:
    """A row of the comparison: a run, or several seeds of one."""

    name: str  # its directory
    fields: Mapping[str, Json]  # every setting by its path
    metrics: Mapping[str, tuple[float, ...]]
    """By `split name`: the value; of several seeds mean, least and most."""
    steps: str
    seconds: float | None
    parameters: int | None
    rows: Sequence[Mapping[str, Any]]  # of `metrics.jsonl`; of several seeds the first one's


def read_entry(directory: Path) -> Entry:
    """Reads the directory of a run, or of several seeds; executes nothing in it.

    Raises:
      UserError: it is neither.
    """
    summary = RunDirectory(directory).read_summary()
    if summary is None:
        return _read_run(directory, str(directory))
    first = _read_run(directory / f"seed-{summary['seeds'][0]}", str(directory))
    metrics = {
        f"{split} {name}": (spread["mean"], spread["min"], spread["max"])
        for split in SPLITS
        for name, spread in summary["metrics"].get(split, {}).items()
    }
    fields = {**first.fields, "seed": summary["seeds"]}
    seconds = summary["seconds"]["mean"]
    return dataclasses.replace(first, fields=fields, metrics=metrics, seconds=seconds)


def differing(entries: Sequence[Entry]) -> list[str]:
    """Paths of the fields in which runs differ, without those below one of another class."""
    found: list[str] = []
    for path in dict.fromkeys(path for entry in entries for path in entry.fields):
        values = [entry.fields.get(path, ABSENT) for entry in entries]
        below = any(path.startswith(f"{above}.") for above in found)
        if not below and any(value != values[0] for value in values):
            found.append(path)
    return found


def shared(entries: Sequence[Entry]) -> list[str]:
    """Metrics that all runs have, as `split name`; without the loss if tasks differ."""
    names = [n for n in entries[0].metrics if all(n in entry.metrics for entry in entries)]
    tasks = {entry.fields.get("task") for entry in entries}
    return [name for name in names if len(tasks) == 1 or not name.endswith(" loss")]


def cells(entries: Sequence[Entry]) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows of the comparison."""
    paths, metrics = differing(entries), shared(entries)
    rows = [
        [
            entry.name,
            *(_setting(entry.fields.get(path, ABSENT)) for path in paths),
            *(_score(entry.metrics[name]) for name in metrics),
            entry.steps,
            ABSENT if entry.seconds is None else f"{entry.seconds:.1f}",
            ABSENT if entry.parameters is None else f"{entry.parameters:,}",
        ]
        for entry in entries
    ]
    return ["run", *paths, *metrics, "steps", "seconds", "parameters"], rows


def aligned(rows: Iterable[Sequence[Any]]) -> str:
    """Formats the rows of a table as lines of text."""
    lines = [list(map(str, line)) for line in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def curve(entries: Sequence[Entry]) -> tuple[str, dict[str, tuple[list[int], list[float]]]]:
    """The metric to plot, and a curve for each run, by label.

    The validation loss if all runs have it, else the training loss; for different tasks the
    first metric that all share.
    """
    tasks = {entry.fields.get("task") for entry in entries}
    rest = [name.split(" ", 1)[1] for name in shared(entries)]
    metric = "loss" if len(tasks) == 1 else next(iter(rest), None)
    if metric is None:
        return "", {}
    split = next(
        (s for s in ("validation", "train") if all(points(e.rows, s, metric) for e in entries)), ""
    )
    lines = {}
    for entry, label in zip(entries, _labels(entries), strict=True):
        line = points(entry.rows, split, metric)
        lines[label] = ([step for step, _ in line], [value for _, value in line])
    return (f"{split} {metric}", lines) if split else ("", {})


def write_comparison(directories: Sequence[Path], out: Path) -> tuple[str, Path]:
    """Compares runs; writes `compare.html` and the plot.

    Returns:
      The table as text, with a note if the runs share no metric, and the page.

    Raises:
      UserError: a directory holds no run, or matplotlib is missing.
    """
    plots.require()
    entries = [read_entry(directory) for directory in directories]
    header, rows = cells(entries)
    text, parts = aligned([header, *rows]), [table(header, rows)]
    if not shared(entries):
        tasks = ", ".join(dict.fromkeys(str(entry.fields.get("task")) for entry in entries))
        sentence = f"These runs share no metric of {' or '.join(SPLITS)} (tasks: {tasks})."
        text += f"\n{sentence}"
        parts.append(paragraph(sentence))
    folder = Folder(out)
    what, lines = curve(entries)
    if lines:
        parts.append(folder.picture("curves", plots.curves({what: lines}), f"{what} by step"))
    return text, folder.page("compare.html", "Comparison of runs", *parts, wide=True)


def _read_run(directory: Path, name: str) -> Entry:
    files = RunDirectory(directory)
    described, result = files.read_experiment(), files.read_result() or {}
    rows = read_rows(files.metrics)
    scores = result.get("metrics") or {row["split"]: row["metrics"] for row in rows}
    reached = max((row["step"] for row in rows), default=0)
    return Entry(
        name,
        {"experiment": described.experiment, **described.fields},
        {f"{s} {n}": (value,) for s in SPLITS for n, value in scores.get(s, {}).items()},
        f"{result['step']:,}" if result else f"{reached:,} of {described.total_steps:,}",
        result.get("seconds") or (rows[-1]["timing"]["seconds"] if rows else None),
        result.get("parameters"),
        rows,
    )


def _labels(entries: Sequence[Entry]) -> list[str]:
    """Labels of runs: their differing fields, or their names if those are ambiguous or long."""
    paths = differing(entries)
    labels = [
        ", ".join(f"{path} {_setting(entry.fields.get(path, ABSENT))}" for path in paths)
        for entry in entries
    ]
    distinct = len(set(labels)) == len(entries) and all(labels) and max(map(len, labels)) <= 60
    return labels if distinct else [entry.name for entry in entries]


def _setting(value: Json) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)


def _score(values: tuple[float, ...]) -> str:
    mean, *ends = (str(shown(float(value))) for value in values)
    return f"{mean} [{ends[0]}, {ends[1]}]" if ends else mean
