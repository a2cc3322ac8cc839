"""Fits probes to the predictions for training examples, and scores them on a split."""

from typing import Any

import jax
import numpy as np

from jdl.data.mixture import Mixture
from jdl.data.pipeline import Pipeline
from jdl.errors import UserError
from jdl.tasks.embedding import check_class_labels
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.trainer.interrupt import Interrupted


def probe_accuracies(run: Any, split: str, state: Any) -> dict[str, float]:
    """Computes the accuracy of each of the task's probes of a split, by name.

    Args:
      run: a `Run`.
      split: to score.
      state: to predict with, on the devices.

    Raises:
      UserError: the predictions are no features, or the targets no classes.
    """
    task = run.experiment.task
    probes = [probe for probe in task.probes if split in probe.splits]
    if not probes:
        return {}
    if jax.process_count() > 1:
        run.print("task.probes need a single process: run `jdl evaluate` in one for them")
        return {}
    if isinstance(run.experiment.data, Mixture):
        raise UserError(
            "task.probes read the labels of training examples, of which a Mixture may lack some: "
            "use the labeled data alone, or leave the probes out"
        )
    train, own = run.pipeline("train"), run.pipeline(split)
    labels = _labels(task, train, "train")
    chosen = [probe.choose(labels) for probe in probes]
    needed = np.unique(np.concatenate(chosen))
    x = _predict(run, state, train, needed)
    rows, classes = _predict(run, state, own, np.arange(len(own))), _labels(task, own, split)
    if not (np.isfinite(x).all() and np.isfinite(rows).all()):
        return {probe.name: float("nan") for probe in probes}
    found = {}
    for probe, indices in zip(probes, chosen, strict=True):
        predicted = probe.predict(x[np.searchsorted(needed, indices)], labels[indices], rows)
        found[probe.name] = float((predicted == classes).mean())
    return found


def _labels(task: Any, pipeline: Pipeline, split: str) -> np.ndarray:
    """Returns the classes of all examples of a split."""
    found = [
        pipeline.examples(np.arange(begin, min(begin + 1024, len(pipeline))))[task.targets]
        for begin in range(0, len(pipeline), 1024)
    ]
    labels = np.concatenate(found)
    check_class_labels(labels, task.targets, f"split {split!r}")
    return labels


def _predict(run: Any, state: Any, pipeline: Pipeline, indices: np.ndarray) -> np.ndarray:
    """Returns the predictions for some examples, (examples, features) float32."""
    size, found = run.experiment.batch_size, []
    for begin in range(0, len(indices), size):
        own = indices[begin : begin + size]
        padded = np.concatenate([own, np.repeat(own[:1], size - len(own))])
        batch = {**pipeline.examples(padded), "mask": np.arange(size) < len(own)}
        placed = run.compiled.put({**batch, ROW_SEEDS: row_seeds(None, padded)})
        predicted = jax.device_get(run.compiled.predict(state, placed))
        if getattr(predicted, "ndim", 0) < 2:
            raise UserError(
                f"task.probes classify features (examples, features), and "
                f"{type(run.experiment.task).__name__} predicts none: leave them out"
            )
        found.append(np.asarray(predicted[: len(own)], np.float32).reshape(len(own), -1))
        if run.interruption.requested:
            raise Interrupted
    return np.concatenate(found)
