"""The README's table of results, from run directories: `python -m benchmarks.results DIR ...`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from benchmarks.report import between, renew
from jdl.config.experiment_file import expectation, find, load
from jdl.errors import UserError
from jdl.files import RunDirectory

HEAD = """| experiment | data | metric | mean | worst | seeds | seconds a run |
|---|---|---|---|---|---|---|"""


def row(directory: Path) -> str:
    """A row for a run, or for the runs of `--seeds`.

    Raises:
      UserError: the directory holds no finished run.
    """
    runs = sorted(directory.glob("seed-*")) or [directory]
    results = [_read(RunDirectory(run).result) for run in runs]
    name = results[0]["experiment"]
    promise = expectation(find(name))
    split, metric = promise.metric.split() if promise else ("test", "accuracy")
    scores = [result["metrics"][split][metric] for result in results]
    higher = load(find(name)).experiment.task.higher_is_better(metric)
    if higher is None:
        raise UserError(f"{name}: whether a higher {metric} is better is unknown")
    worst = min(scores) if higher else max(scores)
    seconds = sum(result["seconds"] for result in results) / len(results)
    data = _read(RunDirectory(runs[0]).environment)["data"]
    splits = [split for split in ("train", "validation", "test") if split in data]
    counts = " / ".join(f"{data[split]['count']:,}" for split in splits)
    return (
        f"| `{name}` | {data['train']['source']}, {counts} | {split} {metric} "
        f"| {sum(scores) / len(scores):.4f} | {worst:.4f} | {len(scores)} | {seconds:.0f} |"
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent} holds no finished run: {error}") from error


def merged(old: str, rows: Sequence[str]) -> str:
    """Merges rows into a table: replaces those of the same experiments, appends others."""
    named = {line.split("`")[1]: line for line in old.splitlines() if line.startswith("| `")}
    named |= {line.split("`")[1]: line for line in rows}
    return "\n".join([HEAD, *named.values()])


def main(directories: Positional[Sequence[Path]], /, readme: Path | None = None) -> None:
    """Prints the table; optionally updates the README's.

    Args:
        directories: of runs, or of several seeds of one.
        readme: a file in whose table, between the two marks, the rows of these experiments are
            updated or added.
    """
    rows = [row(directory) for directory in directories]
    print("\n".join([HEAD, *rows]))
    if readme:
        renew(readme, "results", merged(between(readme, "results"), rows))


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.results")
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
