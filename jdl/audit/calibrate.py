"""Fits the calibration of a classifier's probabilities, and conformal sets; writes both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jdl.audit.rates import Sums, features
from jdl.audit.report import predict_split
from jdl.config.objects import describe_object
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, write_json
from jdl.hooks import EarlyStopping
from jdl.tasks import BinaryClassification
from jdl.tasks.calibration import (
    Calibration,
    IsotonicCalibration,
    TemperatureScaling,
    VectorScaling,
    fit_conformal,
)
from jdl.trainer.opening import restore_run
from jdl.trainer.run import Run
from jdl.typing import Json

Method = Literal["temperature", "vector", "isotonic", "none"]

TINY = float(np.finfo(np.float32).tiny)
ONE = 1 - 2**-24  # the largest float32 below 1


def calibrate(
    workdir: Path,
    experiment: Experiment,
    *,
    method: Method = "temperature",
    split: str = "calibration",
    coverage: float = 0.9,
    per_class: bool = True,
) -> dict[str, Json]:
    """Fits the calibration of a run and its conformal sets, and writes them to its directory.

    From then on `jdl.open` returns the run calibrated: evaluation, prediction and export apply it.
    Training the run further removes it.

    Args:
      workdir: the run directory.
      experiment: the run's.
      method: what is fitted, by maximum likelihood (`temperature`, `vector`) or least squares
        (`isotonic`).
      split: to fit on, which neither training nor early stopping has read.
      coverage: of the conformal sets.
      per_class: whether the coverage holds within each class.

    Returns:
      What `evaluate_calibration` returns, for `before` and `after` on the test split.

    Raises:
      UserError: the run classifies nothing, or the split is missing, was trained on or is small.
    """
    check_split(experiment, split)
    run = restore_run(workdir, experiment, calibrated=False)
    if split not in run.data.names:
        raise UserError(
            f"{workdir} has no split {split!r} (there are {', '.join(run.data.names)}): train it "
            f"with data.calibration_fraction=0.1, so that no other part has seen those examples"
        )
    labels, p = predict_split(run, split)
    single = isinstance(experiment.task, BinaryClassification)
    fitted = fit(labels, p, method, single)
    p = apply(fitted, p, single)
    conformal = fit_conformal(labels, p, coverage, per_class)
    found: dict[str, Json] = {
        "split": split,
        "examples": len(labels),
        "calibration": describe_object(fitted),
        "conformal": describe_object(conformal),
    }
    if "test" in run.data.names:
        labels, before = predict_split(run, "test")
        after = apply(fitted, before, single)
        found["test"] = {
            "before": evaluate_calibration(labels, before),
            "after": evaluate_calibration(labels, after),
            "sets": evaluate_sets(labels, conformal(after), _names(run)),
        }
    write_json(RunDirectory(workdir).calibration, found)
    return found


def check_split(experiment: Experiment, split: str) -> None:
    """Raises a UserError for a split that took part in training, or is for testing."""
    if split in ("train", "test"):
        why = "the model was trained on" if split == "train" else "the result is measured on"
        raise UserError(f"the {split} split is what {why}: calibrate on another, as calibration")
    for index, hook in enumerate(experiment.hooks):
        if isinstance(hook, EarlyStopping) and hook.metric.split(".")[0] == split:
            raise UserError(
                f"the {split} split has stopped the training (hooks.{index}), so that the model "
                f"fits it: calibrate on another, as calibration (data.calibration_fraction)"
            )


def fit(labels: np.ndarray, p: np.ndarray, method: Method, single: bool) -> Calibration | None:
    """Fits a calibration.

    Args:
      labels: (examples,) int.
      p: probabilities (examples, classes).
      method: which; `none` returns None.
      single: whether the model has one logit for two classes.
    """
    if method == "none":
        return None
    if method == "isotonic":
        return _isotonic(labels, p[:, 1:] if single else p, single)
    odds = _log_odds(p, single)
    if method == "temperature":
        ((slope,), _) = _maximum_likelihood(labels, odds, shared=True)
        return TemperatureScaling(temperature=1 / slope)
    weights, biases = _maximum_likelihood(labels, odds, shared=False)
    return VectorScaling(weights=weights, biases=biases)


def apply(calibration: Calibration | None, p: np.ndarray, single: bool) -> np.ndarray:
    """Returns calibrated probabilities (examples, classes)."""
    if calibration is None:
        return p
    odds = jnp.asarray(_log_odds(p, single), jnp.float32)
    logits = np.asarray(calibration(odds), np.float64)
    return _softmax(_both(logits)).astype(np.float32)


def evaluate_calibration(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Returns `accuracy`, `nll` and `ece` (15 bins of equal width) of probabilities."""
    sums = Sums(features(labels, p).sum(0), p.shape[1])
    return {name: float(sums.score(name)) for name in ("accuracy", "nll", "ece")}


def evaluate_sets(
    labels: np.ndarray,
    sets: np.ndarray,
    names: tuple[str, ...],
    groups: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Returns how often sets (examples, classes) have the true class, and their sizes.

    Args:
      labels: (examples,) int.
      sets: whether a class is in the set.
      names: of the classes.
      groups: by name of the group, whether each example belongs to it.
    """
    right, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
    members = {names[each]: labels == each for each in range(sets.shape[1])}
    by_class = {name: float(right[own].mean()) for name, own in members.items() if own.any()}
    found: dict[str, Any] = {
        "coverage": float(right.mean()),
        "mean_size": float(sizes.mean()),
        "empty": float((sizes == 0).mean()),
        "coverage_by_class": by_class,
        "worst_class": min(by_class, key=lambda name: by_class[name]),
    }
    if groups:
        by_group = {name: float(right[own].mean()) for name, own in groups.items() if own.any()}
        found["coverage_by_group"] = by_group
        found["worst_group"] = min(by_group, key=lambda name: by_group[name])
    return found


def _names(run: Run) -> tuple[str, ...]:
    names = run.experiment.data.output_names()
    size = 2 if len(run.prediction.shape) == 1 else run.prediction.shape[-1]
    return tuple(names) if len(names) == size else tuple(map(str, range(size)))


def _log_odds(p: np.ndarray, single: bool) -> np.ndarray:
    """Returns log probabilities, or the logit of class 1 (examples, 1), float64."""
    p = np.clip(p.astype(np.float64), TINY, None)
    if not single:
        return np.log(p)
    last = np.clip(p[:, 1:], None, ONE)
    return np.log(last) - np.log1p(-last)


def _both(logits: np.ndarray) -> np.ndarray:
    """Returns logits of all classes: that of class 0 is 0 where there is one logit."""
    return logits if logits.shape[1] > 1 else np.concatenate([0 * logits, logits], 1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _maximum_likelihood(
    labels: np.ndarray, odds: np.ndarray, shared: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns weights and biases of the least cross-entropy; `shared`: one weight, no biases."""
    from scipy.optimize import minimize

    rows, size = odds.shape
    one_hot = np.eye(max(size, 2))[labels]

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (x, np.zeros(size)) if shared else (x[:size], x[size:])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = parts(x)
        p = _softmax(_both(odds * weights + biases))
        slopes = ((p - one_hot)[:, -size:]) / rows  # d loss / d logits
        by_weight = slopes * odds
        gradient = [by_weight.sum()] if shared else [*by_weight.sum(0), *slopes.sum(0)]
        value = -np.log(np.maximum(p[np.arange(rows), labels], TINY)).mean()
        return float(value), np.array(gradient)

    begin = np.ones(1) if shared else np.concatenate([np.ones(size), np.zeros(size)])
    bounds = [(1e-3, 1e3)] if shared else None
    best = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds)
    weights, biases = parts(best.x)
    return tuple(map(float, weights)), tuple(map(float, biases))


def _isotonic(labels: np.ndarray, p: np.ndarray, single: bool) -> IsotonicCalibration:
    from sklearn.isotonic import IsotonicRegression

    inputs, targets = [], []
    for index in range(p.shape[1]):
        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        model.fit(p[:, index].astype(np.float64), labels == index + single)
        inputs.append(tuple(map(float, model.X_thresholds_)))
        targets.append(tuple(map(float, model.y_thresholds_)))
    return IsotonicCalibration(inputs=tuple(inputs), targets=tuple(targets))
