"""A table of scores by the number of training examples."""

from collections.abc import Sequence
from typing import Any

from jdl.metrics import without_duplicates
from jdl.sweeps.data_curve import Point


def scores(point: Point) -> dict[str, dict[str, float]]:
    """Returns mean, least and most of each metric of the test split, else of the validation."""
    metrics = point.summary["metrics"]
    split = next((s for s in ("test", "validation") if s in metrics), "train")
    known = without_duplicates(metrics[split])
    return {f"{split} {name}": spread for name, spread in known.items()}


def lines(points: Sequence[Point]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Returns examples, mean, least and most of each metric, by its name."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for point in points:
        for name, spread in scores(point).items():
            row = (point.examples, spread["mean"], spread["min"], spread["max"])
            found.setdefault(name, []).append(row)
    return found


def cells(points: Sequence[Point]) -> list[list[Any]]:
    """Returns the header, and a row for each point."""
    names = list(scores(points[0]))
    rows: list[list[Any]] = [["fraction", "examples", "steps", *names, "seconds"]]
    for point in points:
        found = scores(point)
        rows.append(
            [
                f"{point.fraction:g}",
                f"{point.examples:,}",
                f"{point.steps:,}",
                *(_shown(found[name]) for name in names),
                f"{point.summary['seconds']['mean']:.1f}",
            ]
        )
    return rows


def _shown(spread: dict[str, float]) -> str:
    mean = f"{spread['mean']:.4f}"
    return mean if spread["n"] == 1 else f"{mean} [{spread['min']:.4f}, {spread['max']:.4f}]"
