"""Report sections of segmentation and detection: scores by class, precision-recall curves."""

import jax
import numpy as np

from jdl.report import plots
from jdl.report.baselines import evenly
from jdl.report.page import Folder, Html, paragraph, section, table
from jdl.report.run_baselines import chunks, held_out
from jdl.tasks import Detection
from jdl.trainer.run import Run

IMAGES = 2000
"""Images at most, from which curves are drawn."""

TITLES = {"iou": "IoU", "ap": "AP", "ap_50": "AP at IoU 0.5"}
"""Metrics that have a number for each class."""


def sections(run: Run, folder: Folder) -> list[Html]:
    """Scores by class, as evaluated at the end of the run, and a detector's curves.

    On the split of `held_out`, or if that was not scored by class, on another that was.
    """
    task, arrays = run.experiment.task, run.result.get("arrays", {})
    order = (held_out(run), "validation", "train")
    split = next((name for name in order if name in arrays), order[0])
    found = arrays.get(split, {})
    columns = [name for name in TITLES if name in found]
    parts = []
    if columns:
        names = class_names(run, len(found[columns[0]]))
        lines = zip(names, *(map(_number, found[name]) for name in columns), strict=True)
        header = ("class", *(TITLES[name] for name in columns))
        parts = [
            section("Scores by class", paragraph(f"On the {split} split."), table(header, lines))
        ]
    return [*parts, *curves(run, task, split, folder)] if isinstance(task, Detection) else parts


def curves(run: Run, task: Detection, split: str, folder: Folder) -> list[Html]:
    """A precision-recall curve of each class that has objects in the split."""
    if not task.has_host_metrics(split, run.experiment.data):
        return []
    pipeline, predictions, examples = run.data.pipeline(split), [], []
    indices = evenly(len(pipeline), IMAGES)
    for chunk in chunks(indices):
        rows = pipeline.examples(chunk)
        predictions.append(run.predict_rows(rows))
        kept = (task.targets, task.labels, f"{task.targets}_mask", "is_crowd")
        examples.append({name: rows[name] for name in kept if name in rows})
    prediction, rows = jax.tree.map(
        lambda *parts: np.concatenate(parts), *zip(predictions, examples, strict=True)
    )
    precision = task.precision_recall(prediction, rows).precision[0, :, :, 0]  # (recalls, classes)
    named = zip(class_names(run, task.num_classes), precision.T, strict=True)
    lines = {name: each for name, each in named if not np.isnan(each).any()}
    if not lines:
        return []
    about = f"Of boxes found at an overlap (IoU) of 0.5, on {len(indices):,} images of {split}."
    figure = plots.precision_recall(lines)
    picture = folder.picture("precision_recall", figure, "Precision-recall curves")
    return [section("Precision-recall curves", paragraph(about), picture)]


def class_names(run: Run, count: int) -> list[str]:
    """The names of the classes, or their numbers."""
    names = run.experiment.data.output_names()
    return list(names) if len(names) == count else [str(label) for label in range(count)]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
