"""Calibration of a classifier's probabilities, and conformal sets of classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.typing import Json

ROUNDING = 1e-9
"""Far above the rounding of a share such as 1 - 0.9, far below that of a rank."""

LEAST = 1e-6
"""Smallest probability that a calibration by steps gives, so that no cross-entropy is infinite."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A map of a classifier's logits, fitted on held-out examples (`jdl calibrate`).

    Evaluation and prediction apply it to the model's outputs, training does not.
    """

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Returns calibrated logits.

        Args:
          logits: (batch, classes), or (batch, 1) of class 1 against 0.
        """
        raise NotImplementedError

    def log_odds(self, logits: jax.Array) -> jax.Array:
        """Returns log probabilities (batch, classes), or one logit as it is, in float32."""
        logits = logits.astype(jnp.float32)
        return logits if logits.shape[-1] == 1 else jax.nn.log_softmax(logits)


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling(Calibration):
    """Divides logits by one number, which changes no predicted class (Guo et al., 2017)."""

    temperature: float = 1.0  # above 1: less confident

    def __call__(self, logits: jax.Array) -> jax.Array:
        """See `Calibration.__call__`."""
        return logits.astype(jnp.float32) / self.temperature


@dataclass(frozen=True, kw_only=True)
class VectorScaling(Calibration):
    """Scales and shifts the log probability of each class (Guo et al., 2017).

    Of one logit it is Platt's scaling (1999).
    """

    weights: tuple[float, ...] = ()  # of each output
    biases: tuple[float, ...] = ()  # of each output

    def __call__(self, logits: jax.Array) -> jax.Array:
        """See `Calibration.__call__`."""
        return self.log_odds(logits) * jnp.array(self.weights) + jnp.array(self.biases)


@dataclass(frozen=True, kw_only=True)
class IsotonicCalibration(Calibration):
    """Maps each class's probability by an increasing function, then normalizes.

    One class against the rest (Zadrozny and Elkan, 2002), linear between the points.
    """

    inputs: tuple[tuple[float, ...], ...] = ()  # probabilities of each output, increasing
    targets: tuple[tuple[float, ...], ...] = ()  # what they become

    def __call__(self, logits: jax.Array) -> jax.Array:
        """See `Calibration.__call__`."""
        odds = self.log_odds(logits)
        p = jax.nn.sigmoid(odds) if odds.shape[-1] == 1 else jnp.exp(odds)
        columns = [
            jnp.interp(p[..., index], jnp.array(x), jnp.array(y))
            for index, (x, y) in enumerate(zip(self.inputs, self.targets, strict=True))
        ]
        found = jnp.clip(jnp.stack(columns, -1), LEAST, 1 - LEAST)
        return jnp.log(found) - jnp.log1p(-found) if odds.shape[-1] == 1 else jnp.log(found)


@dataclass(frozen=True, kw_only=True)
class ConformalSets:
    """Sets of classes that contain the true one with a probability of at least `coverage`.

    A class is in the set if its probability reaches its threshold. That holds on average over
    examples exchangeable with those of the calibration split (Vovk et al., 2005), and with a
    threshold of each class also within each class (Sadinle et al., 2019). Sets may be empty.
    """

    coverage: float = 0.9  # share of examples whose set has the true class
    thresholds: tuple[float, ...] = ()  # least probability: one of all classes, or one of each

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns whether each class is in the set, (..., classes) bool.

        Args:
          probabilities: (..., classes).
        """
        return probabilities >= np.array(self.thresholds, np.float32)

    def to_json(self, probabilities: np.ndarray, names: Sequence[str]) -> list[Json]:
        """Returns the classes of one example's set, (classes,), by name or number."""
        chosen = np.flatnonzero(self(probabilities)).tolist()
        return [names[each] if len(names) == len(probabilities) else each for each in chosen]


def check_coverage(coverage: float) -> None:
    """Raises a UserError unless a coverage is between 0 and 1."""
    if not 0 < coverage < 1:
        raise UserError(f"a coverage is a share between 0 and 1, not {coverage}")


def fit_conformal(
    labels: np.ndarray, probabilities: np.ndarray, coverage: float, per_class: bool
) -> ConformalSets:
    """Fits the thresholds of conformal sets.

    Args:
      labels: (examples,) int, of examples that the model was not trained on.
      probabilities: (examples, classes), calibrated or not.
      coverage: share of examples whose set shall have the true class.
      per_class: whether that shall hold within each class.

    Raises:
      UserError: there are too few examples, of a class.
    """
    check_coverage(coverage)
    own = probabilities[np.arange(len(labels)), labels]
    classes = range(probabilities.shape[1]) if per_class else [None]
    thresholds = []
    for each in classes:
        scores = np.sort(own if each is None else own[labels == each])
        # Among n + 1 exchangeable scores, the new one is below the k-th smallest with probability
        # k / (n + 1) at most.
        rank = math.floor((len(scores) + 1) * (1 - coverage) + ROUNDING)
        if rank < 1:
            kind = "" if each is None else f" of class {each}"
            least = math.ceil(1 / (1 - coverage) - ROUNDING) - 1
            raise UserError(
                f"a coverage of {coverage} needs at least {least} examples{kind} to calibrate on, "
                f"and there are {len(scores)}: raise data.calibration_fraction, or lower the "
                f"coverage"
            )
        thresholds.append(float(scores[rank - 1]))
    return ConformalSets(coverage=coverage, thresholds=tuple(thresholds))
