"""Report sections of a classifier: confusion matrix, most confident errors, word attributions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data import Words
from jdl.report import plots
from jdl.report.baselines import evenly
from jdl.report.occlusion import colored_text, influence, text_of
from jdl.report.page import Folder, Html, paragraph, section, table
from jdl.report.run_baselines import SCORED, chunks, class_probabilities, held_out
from jdl.trainer.run import Run

WORST = 12
"""Mistakes that are shown."""

TEXTS = 3
"""Texts that it was right on, at most, in which words are colored."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for examples of a split."""

    split: str
    indices: np.ndarray  # of the examples in the split, (n,)
    probabilities: np.ndarray  # probability of each class, (n, classes)
    labels: np.ndarray  # (n,) int
    note: str  # which examples these are, in words

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, (n,)."""
        return self.probabilities.argmax(1)


def predict_held_out(run: Run) -> Predictions:
    """Predicts a classifier's held-out split, or a sample of a large one."""
    split = held_out(run)
    pipeline = run.data.pipeline(split)
    indices = evenly(len(pipeline), SCORED)
    probabilities, labels = [], []
    for chunk in chunks(indices):
        rows = pipeline.examples(chunk)
        probabilities.append(class_probabilities(run, rows))
        labels.append(rows[run.experiment.task.targets])
    note = f"the {split} split"
    if len(indices) < len(pipeline):
        note = f"{len(indices):,} of the {len(pipeline):,} examples of {note}"
    found = np.concatenate(probabilities), np.concatenate(labels).astype(int)
    return Predictions(split, indices, *found, note)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix: counts by true class (row) and predicted class (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def mistakes(predictions: Predictions, count: int = WORST) -> np.ndarray:
    """Indices of the wrong predictions with the highest probability, highest first."""
    sure = predictions.probabilities.max(1)
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return wrong[np.argsort(-sure[wrong], kind="stable")][:count]


def sections(
    run: Run, predictions: Predictions, folder: Folder, words: tuple[str, ...]
) -> list[Html]:
    """Confusion matrix and most confident errors; `words` is the vocabulary of a text."""
    counts = confusion(
        predictions.labels, predictions.predicted, predictions.probabilities.shape[1]
    )
    right = int(np.trace(counts))
    meaning = f"Confusion matrix of {predictions.note}"
    matrix = section(
        "Confusion matrix",
        paragraph(f"Correct on {predictions.note}: {right:,} of {counts.sum():,}."),
        folder.picture("confusion", plots.confusion_matrix(counts), meaning),
    )
    worst = mistakes(predictions)
    errors = paragraph(f"None on {predictions.note}.")
    if len(worst):
        errors = _shown(run, predictions, worst, folder, words)
    return [matrix, section("Most confident errors", errors)]


def influences(run: Run, predictions: Predictions, words: tuple[str, ...]) -> Html:
    """Texts with words colored by influence: one correct per class, two errors."""
    right = np.flatnonzero(predictions.predicted == predictions.labels)
    firsts = np.unique(predictions.labels[right], return_index=True)[1][:TEXTS]
    picked = [*right[firsts], *mistakes(predictions, 2)]
    pipeline, parts = run.data.pipeline(predictions.split), []
    for place in picked:
        row = pipeline.examples(predictions.indices[[place]])
        tokens = row[run.experiment.task.input_names[0]][0]
        changes, probabilities = influence(run, tokens)
        label, sure = probabilities.argmax(), probabilities.max()
        line = f"Predicted {label} ({sure:.2f}), true {predictions.labels[place]}:"
        parts += [paragraph(line, quiet=True), colored_text(tokens, changes, words)]
    about = (
        "Blue words support the predicted class, orange ones oppose it: by the fall of its "
        "probability if the word alone is replaced by the unknown token, shown as [?]."
    )
    return section("Word attributions (occlusion)", paragraph(about), *parts)


def _shown(
    run: Run, predictions: Predictions, worst: np.ndarray, folder: Folder, words: tuple[str, ...]
) -> Html:
    rows = run.data.pipeline(predictions.split).examples(predictions.indices[worst])
    inputs = rows[run.experiment.task.input_names[0]]
    predicted, labels = predictions.predicted[worst], predictions.labels[worst]
    shown = list(zip(predicted, predictions.probabilities[worst].max(1), labels, strict=True))
    if _are_images(inputs):
        titles = [f"predicted {it} ({sure:.2f})\ntrue {label}" for it, sure, label in shown]
        return folder.picture("mistakes", plots.pictures(inputs, titles), "Most confident errors")
    if words and isinstance(run.experiment.data, Words):
        what, contents = "text", [_cut(text_of(tokens, words)) for tokens in inputs]
    else:
        what, contents = "input", [_numbers(example) for example in inputs]
    lines = [
        (int(predictions.indices[i]), int(it), float(sure), int(label), content)
        for i, (it, sure, label), content in zip(worst, shown, contents, strict=True)
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
