"""Concepts that a class depends on (TCAV), and what would change a prediction (counterfactuals)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jdl.errors import UserError
from jdl.explain.learned import activations
from jdl.explain.method import Request

RUNS = 10
"""Random sets that a concept is told from, and random sets told from one another."""


@dataclass(frozen=True)
class Concept:
    """How a class depends on a concept.

    Attributes:
      score: share of the rows whose target rises in the direction of the concept.
      random: the same of directions between random sets, (runs,).
      each: the score of each run, (runs,).
      accuracy: with which the layer's outputs tell the concept from random examples held out.
      p_value: of Welch's test that the scores are those of random directions.
    """

    score: float
    random: np.ndarray
    each: np.ndarray
    accuracy: float
    p_value: float


def concept_activation(request: Request, concept: Request, others: Request, layer: str) -> Concept:
    """Tests whether a target depends on a concept in a layer (TCAV; Kim et al., 2018).

    A linear classifier tells the layer's outputs for examples of the concept from those for random
    ones; the score is the share of rows in which the target's derivative along its normal is above
    0. Random sets in place of the concept say what of that is chance.

    Args:
      request: of the rows whose target is tested.
      concept: of examples of the concept.
      others: of random examples, at least twice as many.
      layer: path of a module.

    Raises:
      UserError: there are too few examples, or no such layer.
    """
    if concept.count < 4 or others.count < 2 * concept.count:
        raise UserError(
            f"TCAV needs at least 4 examples of the concept and twice as many others, not "
            f"{concept.count} and {others.count}"
        )
    ours, theirs = (activations(each, layer).reshape(each.count, -1) for each in (concept, others))
    slopes = request.by_parts(
        lambda part: part.subject.layer_gradient(part.params, part.x, part.rows, (layer,))[2][layer]
    ).reshape(request.count, -1)
    rng, size = np.random.default_rng(0), concept.count
    found, chance, right = [], [], []
    for _ in range(RUNS):
        order = rng.permutation(len(theirs))
        first, second = theirs[order[:size]], theirs[order[size : 2 * size]]
        direction, accuracy = _direction(ours, first)
        found.append(float((slopes @ direction > 0).mean()))
        right.append(accuracy)
        chance.append(float((slopes @ _direction(second, first)[0] > 0).mean()))
    return Concept(
        float(np.mean(found)), np.array(chance), np.array(found), float(np.mean(right)),
        _welch(np.array(found), np.array(chance)),
    )  # fmt: skip


def _welch(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the p-value of Welch's test, two-sided; scores that are all equal have variance 0."""
    from scipy.special import stdtr

    parts = [max(float(x.var(ddof=1)) / len(x), 1e-12) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (a, b), strict=True))
    t = abs(float(a.mean() - b.mean())) / sum(parts) ** 0.5
    return float(2 * stdtr(freedom, -t))


def _direction(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the normal toward the first set, and the accuracy on a quarter that is held out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([ours, theirs]).astype(np.float64)
    y = np.repeat([1, 0], [len(ours), len(theirs)])
    held = np.arange(len(x)) % 4 == 3
    scaler = StandardScaler().fit(x[~held])
    model = LogisticRegression(C=0.1, max_iter=500)
    model.fit(scaler.transform(x[~held]), y[~held])
    normal = model.coef_[0] / scaler.scale_
    return normal, float(model.score(scaler.transform(x[held]), y[held]))


@dataclass(frozen=True)
class Counterfactual:
    """What would change the prediction of a row.

    Attributes:
      index: place of the example whose values were taken, among those offered; -1: there is none.
      x: the changed inputs of the row.
      features: numbers of the features that changed.
      label: the class that is then predicted.
    """

    index: int
    x: dict[str, np.ndarray]
    features: Sequence[int]
    label: int


def find_counterfactuals(
    request: Request, known: Request, classes: int, wanted: int | None = None
) -> list[Counterfactual]:
    """Finds the fewest features whose change to a training example's values changes the class.

    Of the nearest training example that is predicted to be of another class, features are taken one
    by one, each time that which most lowers the lead of the present class, until the prediction
    changes (NICE; Brughmans et al., 2021). Every value is one that occurred.

    Args:
      request: of the rows, of a target `Class`.
      known: of training examples.
      classes: number of classes.
      wanted: class to reach; None: any other.

    Raises:
      UserError: the target is not a class.
    """
    if "label" not in request.rows["target"]:
        raise UserError("a counterfactual changes the class: it needs a classifier")
    ours, theirs = (_logits(each, classes).argmax(1) for each in (request, known))
    flat = [
        np.concatenate([x.reshape(len(x), -1) for x in each.x.values()], 1)
        for each in (request, known)
    ]
    spread = np.maximum(flat[1].std(0), 1e-6 * max(1e-12, float(flat[1].std())))
    found = []
    for row in range(request.count):
        aims = theirs == wanted if wanted is not None else theirs != ours[row]
        aims = aims & (theirs != ours[row])
        if not aims.any():
            found.append(Counterfactual(-1, _row(request, row), (), int(ours[row])))
            continue
        far = np.abs((flat[1] - flat[0][row]) / np.where(spread > 0, spread, 1)).sum(1)
        index = int(np.where(aims, far, np.inf).argmin())
        found.append(_greedy(request, known, classes, row, index, int(ours[row])))
    return found


def _greedy(
    request: Request, known: Request, classes: int, row: int, index: int, label: int
) -> Counterfactual:
    """Takes features of an example until the class changes."""
    one = request.take(np.array([row]))
    other = {name: x[index : index + 1] for name, x in known.x.items()}
    taken: list[int] = []
    left = list(range(request.num_features))
    while left:
        trials = np.ones((len(left), request.num_features), np.float32)
        trials[:, taken] = 0
        trials[np.arange(len(left)), left] = 0
        x = _mixed(one, other, trials)
        scores = _logits_at(one, x, classes)
        lead = scores[:, label] - np.delete(scores, label, 1).max(1)
        best = int(lead.argmin())
        taken.append(left.pop(best))
        if lead[best] < 0:
            changed = {name: each[best] for name, each in x.items()}
            return Counterfactual(index, changed, taken, int(scores[best].argmax()))
    return Counterfactual(index, {n: v[0] for n, v in other.items()}, taken, label)


def _row(request: Request, row: int) -> dict[str, np.ndarray]:
    return {name: x[row] for name, x in request.x.items()}


def _mixed(one: Request, other: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a row with some features kept and the others taken, (trials, ...)."""
    found = {}
    for name, x in one.x.items():
        own = keep[:, np.broadcast_to(one.features[name], x.shape[1:])]
        found[name] = np.where(own > 0, x, other[name])
    return found


def _logits(request: Request, classes: int) -> np.ndarray:
    """Returns the scalar of each class for the rows, (rows, classes)."""
    return _each_class(request, request.x, np.arange(request.count), classes)


def _logits_at(one: Request, x: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """Returns the scalar of each class for variants of one row, (variants, classes)."""
    count = len(next(iter(x.values())))
    return _each_class(one, x, np.zeros(count, int), classes)


def _each_class(
    request: Request, x: dict[str, np.ndarray], index: np.ndarray, classes: int
) -> np.ndarray:
    rows = request.take(index).rows
    found = []
    for label in range(classes):
        labels = np.full(len(index), label, np.int32)
        own = {**rows, "target": {**rows["target"], "label": labels}}
        found.append(dataclasses.replace(request, x=x, rows=own).scores())
    return np.stack(found, 1)
