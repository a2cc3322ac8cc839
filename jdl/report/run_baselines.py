"""The baselines for a run's task, and its held-out examples."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from jdl.data import Interactions, Panel, Series
from jdl.metrics import AUPRC
from jdl.report import baselines, ranking
from jdl.report.baselines import Baseline
from jdl.tasks import (
    AnomalyDetection,
    BinaryClassification,
    Classification,
    Forecast,
    LanguageModeling,
    NextItem,
    QuantileForecast,
    Regression,
)
from jdl.trainer.run import Run

TEXTS, SCORED = 50_000, 10_000
"""Examples at most: texts to fit on, and examples to score on."""

PIXELS, NUMBERS = 4096, 40_000_000
"""An image of more numbers than the first is averaged down; no more than the second are fitted."""

LAGS = 20
"""Values before, from which an autoregression forecasts."""


def baselines_of(run: Run) -> tuple[Baseline, ...]:
    """Baselines for the run's task, on the split of `held_out`, simplest first."""
    task, data, split = run.experiment.task, run.experiment.data, held_out(run)
    if isinstance(task, Forecast) and isinstance(data, Series):
        found = [Baseline("the last value again", "rmse", baselines.persistence(data, split))]
        if run.data.count("train") > 3 * LAGS * data.read()[1].shape[1]:
            fitted = baselines.autoregression(data, LAGS, split)
            found.append(Baseline(f"AR({LAGS}) by least squares", "rmse", fitted))
        return tuple(found)
    if isinstance(task, QuantileForecast) and isinstance(data, Panel):
        errors = baselines.naive_forecasts(data, split)
        return (
            Baseline("the last value again", "mae", errors["last_value"]),
            Baseline("the last season again", "mae", errors["last_season"]),
        )
    if isinstance(task, NextItem) and isinstance(data, Interactions):
        return tuple(
            Baseline(name, "hit_rate", values["hit_rate"])
            for name, values in ranking.baselines(data, split, task.k).items()
        )
    if isinstance(task, (Classification, BinaryClassification)):
        return _of_classes(run, split)
    if isinstance(task, Regression):
        (_, known, first), (_, targets, second) = _samples(run, split, baselines.FITTED)
        error = baselines.mean_of_targets(known, targets)
        return (Baseline("mean of the training targets", "rmse", error, _note(first, second)),)
    if isinstance(task, AnomalyDetection):
        (x, y, first), (others, labels, second) = _samples(run, split, TEXTS)
        values = baselines.anomaly_scores(x, y, others, labels)
        note = _note(first, second)
        return tuple(Baseline(name, "auprc", value, note) for name, value in values.items())
    if isinstance(task, LanguageModeling):
        (known, _, first), (tokens, _, second) = _samples(run, split, TEXTS)
        found = baselines.frequencies(known, tokens)
        return (Baseline("frequency of each token", "perplexity", found, _note(first, second)),)
    return ()


def held_out(run: Run) -> str:
    """The split to evaluate a run on: test, else validation, else train.

    A test split that the run has not read, since it has not ended or is a trial, is not used.
    """
    read = "test" in run.result.get("metrics", {})
    order = ("test", "validation", "train") if read else ("validation", "train")
    return next(name for name in order if name in run.data.names)


def sample(run: Run, split: str, limit: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs and targets of at most `limit` examples, and notes on sampling and downscaling.

    They come from the pipeline, before any device transform; of a task with `labeled` rows, those
    alone, also of the first `limit` examples. Images of more than `PIXELS`
    numbers are average-pooled.
    """
    pipeline, task = run.data.pipeline(split), run.experiment.task
    first = pipeline.examples(np.zeros(1, int))[task.input_names[0]]
    indices = baselines.evenly(len(pipeline), min(limit, 1 + NUMBERS // averaged(first).size))
    if task.labeled:
        indices = np.union1d(indices, np.arange(min(len(pipeline), limit)))
    parts = []
    for chunk in chunks(indices):
        rows = pipeline.examples(chunk)
        if task.labeled:
            kept = np.asarray(rows[task.labeled], bool)
            rows = {name: array[kept] for name, array in rows.items()}
        parts.append((averaged(rows[task.input_names[0]]), rows[task.targets]))
    inputs, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    notes = []
    if inputs.shape[1:] != first.shape[1:]:
        notes.append(f"inputs averaged to {inputs.shape[1]}x{inputs.shape[2]}")
    if len(indices) < len(pipeline):
        notes.append(f"{len(indices):,} of {len(pipeline):,} {split} examples")
    return inputs, targets, notes


def chunks(indices: np.ndarray, size: int = 256) -> Iterator[np.ndarray]:
    """Yields chunks of indices, to bound the examples in memory."""
    return (indices[begin : begin + size] for begin in range(0, len(indices), size))


def class_probabilities(run: Run, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Class probabilities, (n, classes), of examples from the pipeline."""
    found = run.predict_rows(rows)
    return found if found.ndim == 2 else np.stack([1 - found, found], axis=1)


def averaged(images: np.ndarray) -> np.ndarray:
    """Average-pools images (n, height, width, ...) to about `PIXELS` numbers."""
    side = math.ceil(math.sqrt(math.prod(images.shape[1:]) / PIXELS))
    if images.ndim < 3 or side == 1:
        return images
    height, width = (max(1, size // side) for size in images.shape[1:3])
    tall, wide = images.shape[1] // height, images.shape[2] // width
    kept = images[:, : height * tall, : width * wide].astype(np.float32)
    return kept.reshape(len(images), height, tall, width, wide, *images.shape[3:]).mean((2, 4))


def _of_classes(run: Run, split: str) -> tuple[Baseline, ...]:
    rare = any(isinstance(metric, AUPRC) for metric in run.experiment.task.metrics)
    if rare and len(run.batch[run.experiment.task.input_names[0]].shape) == 2:
        # A sample would hold hardly any example of a rare class.
        (x, y, first), (others, labels, second) = (
            sample(run, each, NUMBERS) for each in ("train", split)
        )
        if len(np.unique(y)) == 2 and labels.any():
            values = baselines.average_precisions(x, y, others, labels)
            note = _note(first, second)
            return tuple(Baseline(name, "auprc", value, note) for name, value in values.items())
    name, fit, limit = "logistic regression", baselines.logistic_regression, baselines.FITTED
    if run.experiment.task.input_names[0] == "tokens":
        name, fit, limit = f"{name} on which words occur", baselines.bag_of_words, TEXTS
    (x, y, first), (others, labels, second) = _samples(run, split, limit)
    if not len(y) or not len(labels):
        return ()
    make = partial(Baseline, metric="accuracy", note=_note(first, second))
    return (
        make("most frequent label", value=baselines.majority(y, labels)),
        make(name, value=fit(x, y, others, labels)),
    )


def _samples(run: Run, split: str, limit: int) -> tuple[tuple, tuple]:
    return sample(run, "train", limit), sample(run, split, SCORED)


def _note(first: list[str], second: list[str]) -> str:
    return "; ".join(dict.fromkeys([*first, *second]))
