"""Learning curves from the rows of `metrics.jsonl`, and a verdict on over- or underfitting."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from jdl.metrics import without_duplicates
from jdl.report.baselines import Baseline
from jdl.tasks.terms import SUPERVISED

Points = list[tuple[int, float]]
"""Steps and values."""

RISE, FALL, LEAST = 0.05, 0.02, 0.005
"""Shares of a loss: a rise from its best that counts, a fall that does, and what never does."""


def curves(
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Steps and values of each metric by split, the loss first."""
    splits = [s for s in ("train", "validation") if any(row["split"] == s for row in rows)]
    names = dict.fromkeys(n for r in rows if r["split"] in splits for n in r["metrics"])
    found = {}
    for name in sorted(names, key=lambda name: (name != "loss", name)):
        lines = {split: points(rows, split, name) for split in splits}
        named = {s: ([x for x, _ in line], [y for _, y in line]) for s, line in lines.items()}
        found[name] = {split: line for split, line in named.items() if line[0]}
    found = without_duplicates(found)
    return {name: lines for name, lines in found.items() if lines and name != "skipped"}


def points(rows: Iterable[Mapping[str, Any]], split: str, metric: str = "loss") -> Points:
    """Steps and finite values of a metric of a split."""
    found = [
        (row["step"], row["metrics"][metric])
        for row in rows
        if row["split"] == split and metric in row["metrics"]
    ]
    return [(step, value) for step, value in found if math.isfinite(value)]


def verdict(
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    floor: Baseline | None = None,
) -> str:
    """Describes whether a run overfits or underfits.

    Args:
      rows: of `metrics.jsonl`.
      result: of `result.json`; empty if the run has not ended.
      floor: score of a model that ignores its input.
    """
    name = "loss" if points(rows, "validation") else SUPERVISED
    train, validation = (points(rows, split, name) for split in ("train", "validation"))
    if text := _underfits(train, result, floor):
        return text
    if not validation and any(row["split"] == "validation" for row in rows):
        return f"Validation has no loss: overfitting not assessed.{_gap(result)}"
    if not validation:
        return f"No validation split: overfitting not assessed.{_gap(result)}"
    if len(validation) < 3:
        return f"Too few validation rows: overfitting not assessed.{_gap(result)}"
    if text := _rises(train, validation):
        return text
    best_step, best = min(validation, key=lambda point: point[1])
    first, (last_step, last) = validation[0][1], validation[-1]
    earlier = _at(validation, validation[0][0] + 0.75 * (last_step - validation[0][0]))
    near = best_step >= validation[-max(1, len(validation) // 10)][0]
    much = max(LEAST * abs(earlier), min(FALL * abs(earlier), RISE * (first - best)))
    if near and earlier - best > much:
        return (
            f"Still improving at the end: validation loss fell from {earlier:.3g} to {best:.3g} "
            f"in the last quarter; train longer."
        )
    return (
        f"Neither over- nor underfits by its losses: validation loss was best at step "
        f"{best_step:,} with {best:.3g} and ended at {last:.3g}."
    )


def _rises(train: Points, validation: Points) -> str:
    best_step, best = min(validation, key=lambda point: point[1])
    after = [value for step, value in validation if step > best_step]
    first, (last_step, last) = validation[0][1], validation[-1]
    if not after or fmean(after[-3:]) - best <= max(RISE * abs(best), FALL * (first - best)):
        return ""
    before, end = _at(train, best_step), _at(train, last_step)
    if train and end - before > max(RISE * abs(before), FALL * (train[0][1] - before)):
        return (
            f"Unstable from about step {best_step:,}: both losses rose, on validation from "
            f"{best:.3g} to {last:.3g}; a smaller learning rate may help."
        )
    training = f" while training loss fell from {before:.3g} to {end:.3g}" if end < before else ""
    return (
        f"Overfits from about step {best_step:,}: validation loss rose from {best:.3g} to "
        f"{last:.3g}{training}."
    )


def _underfits(train: Points, result: Mapping[str, Any], floor: Baseline | None) -> str:
    scores = result.get("metrics", {}).get("train", {})
    if floor and floor.metric in scores:
        value = scores[floor.metric]
        if not floor.beaten_by(value, FALL * abs(floor.value)):
            return (
                f"Underfits: on the training split {floor.metric} is {value:.4g}, no better than "
                f"{floor.value:.4g} by the rule: {floor.name}."
            )
    elif len(train) >= 3 and train[-1][1] > train[0][1] - FALL * abs(train[0][1]):
        (step, first), (end, last) = train[0], train[-1]
        return (
            f"Underfits: training loss did not fall; it was {first:.4g} at step {step:,} and "
            f"{last:.4g} at step {end:,}."
        )
    return ""


def _gap(result: Mapping[str, Any]) -> str:
    """The final losses on training and on held-out data."""
    metrics = result.get("metrics", {})
    other = next((split for split in ("test", "validation") if split in metrics), None)
    if other is None or "loss" not in metrics.get("train", {}) or "loss" not in metrics[other]:
        return ""
    train, held_out = metrics["train"]["loss"], metrics[other]["loss"]
    return f" At the end the loss is {train:.3g} on train and {held_out:.3g} on {other}."


def _at(line: Points, step: float) -> float:
    """The last value up to a step, or the first one; NaN if there is none."""
    before = [value for at, value in line if at <= step]
    return before[-1] if before else line[0][1] if line else math.nan
