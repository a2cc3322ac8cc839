"""Report sections of a classifier: confusion matrix, most confident errors, word attributions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data import Words
from jdl.report import plots
from jdl.report.baselines import evenly
from jdl.report.occlusion import coloured, influence, text_of
from jdl.report.page import Folder, Html, paragraph, section, table
from jdl.report.run_baselines import SCORED, chunks, class_chances, held_out
from jdl.trainer.run import Run

WORST = 12
"""Mistakes that are shown."""

TEXTS = 3
"""Texts that it was right on, at most, in which words are coloured."""


@dataclass(frozen=True)
class Judged:
    """Predictions for examples of a split."""

    split: str
    indices: np.ndarray  # of the examples in the split, (n,)
    chances: np.ndarray  # probability of each class, (n, classes)
    labels: np.ndarray  # (n,) int
    note: str  # which examples these are, in words

    @property
    def said(self) -> np.ndarray:
        """The most probable class, (n,)."""
        return self.chances.argmax(1)


def judge(run: Run) -> Judged:
    """Predicts a classifier's held-out split, or a sample of a large one."""
    split = held_out(run)
    pipeline = run.data.pipeline(split)
    indices = evenly(len(pipeline), SCORED)
    chances, labels = [], []
    for chunk in chunks(indices):
        rows = pipeline.examples(chunk)
        chances.append(class_chances(run, rows))
        labels.append(rows[run.experiment.task.targets])
    note = f"the {split} split"
    if len(indices) < len(pipeline):
        note = f"{len(indices):,} of the {len(pipeline):,} examples of {note}"
    return Judged(split, indices, np.concatenate(chances), np.concatenate(labels).astype(int), note)


def confusion(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix: counts by true class (row) and predicted class (column)."""
    return np.bincount(labels * classes + said, minlength=classes**2).reshape(classes, classes)


def mistakes(judged: Judged, count: int = WORST) -> np.ndarray:
    """Indices of the wrong predictions with the highest probability, highest first."""
    sure = judged.chances.max(1)
    wrong = np.flatnonzero(judged.said != judged.labels)
    return wrong[np.argsort(-sure[wrong], kind="stable")][:count]


def sections(run: Run, judged: Judged, folder: Folder, words: tuple[str, ...]) -> list[Html]:
    """Confusion matrix and most confident errors; `words` is the vocabulary of a text."""
    counts = confusion(judged.labels, judged.said, judged.chances.shape[1])
    right = int(np.trace(counts))
    meaning = f"Confusion matrix of {judged.note}"
    matrix = section(
        "Confusion matrix",
        paragraph(f"Correct on {judged.note}: {right:,} of {counts.sum():,}."),
        folder.picture("confusion", plots.confusion_matrix(counts), meaning),
    )
    worst = mistakes(judged)
    if not len(worst):
        return [matrix, section("Most confident errors", paragraph(f"None on {judged.note}."))]
    return [matrix, section("Most confident errors", _shown(run, judged, worst, folder, words))]


def influences(run: Run, judged: Judged, words: tuple[str, ...]) -> Html:
    """Texts with words colored by influence: one correct per class, two errors."""
    right = np.flatnonzero(judged.said == judged.labels)
    firsts = np.unique(judged.labels[right], return_index=True)[1][:TEXTS]
    picked = [*right[firsts], *mistakes(judged, 2)]
    pipeline, parts = run.data.pipeline(judged.split), []
    for place in picked:
        row = pipeline.examples(judged.indices[[place]])
        tokens = row[run.experiment.task.inputs][0]
        changes, chances = influence(run, tokens)
        said = f"Predicted {chances.argmax()} ({chances.max():.2f}), true {judged.labels[place]}:"
        parts += [paragraph(said, quiet=True), coloured(tokens, changes, words)]
    about = (
        "Blue words support the predicted class, orange ones oppose it: by the fall of its "
        "probability if the word alone is replaced by the unknown token, shown as [?]."
    )
    return section("Word attributions (occlusion)", paragraph(about), *parts)


def _shown(
    run: Run, judged: Judged, worst: np.ndarray, folder: Folder, words: tuple[str, ...]
) -> Html:
    rows = run.data.pipeline(judged.split).examples(judged.indices[worst])
    inputs = rows[run.experiment.task.inputs]
    named = [(judged.said[i], judged.chances[i].max(), judged.labels[i]) for i in worst]
    if _are_images(inputs):
        titles = [f"predicted {said} ({sure:.2f})\ntrue {label}" for said, sure, label in named]
        return folder.picture("mistakes", plots.pictures(inputs, titles), "Most confident errors")
    if words and isinstance(run.experiment.data, Words):
        what, contents = "text", [_cut(text_of(tokens, words)) for tokens in inputs]
    else:
        what, contents = "input", [_numbers(example) for example in inputs]
    lines = [
        (int(judged.indices[i]), int(said), float(sure), int(label), content)
        for i, (said, sure, label), content in zip(worst, named, contents, strict=True)
    ]
    return table(("example", "predicted", "probability", "true", what), lines)


def _are_images(inputs: np.ndarray) -> bool:
    """Whether these are pictures (n, height, width, 1, 3 or 4), or bytes (n, height, width)."""
    return (inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4)) or (
        inputs.ndim == 3 and inputs.dtype == np.uint8
    )


def _numbers(example: Any) -> str:
    flat = np.ravel(example)
    return ", ".join(f"{value:.4g}" for value in flat[:8]) + (", ..." if len(flat) > 8 else "")


def _cut(text: str, length: int = 300) -> str:
    return text if len(text) <= length else "... " + text[-length:]
