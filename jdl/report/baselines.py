"""Baselines that any model has to beat: majority class, persistence, linear models."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data import Panel, Series
from jdl.data.sources import read_examples
from jdl.data.text import START
from jdl.metrics import HIGHER_IS_BETTER

FITTED = 10_000
"""Examples, at most, that logistic regression is fitted on."""


@dataclass(frozen=True)
class Baseline:
    """The score of a simple rule."""

    name: str
    metric: str  # as the task calls it
    value: float
    note: str = ""  # what it was fitted and scored on, where not on everything

    def beaten_by(self, value: float, margin: float = 0.0) -> bool:
        """Whether a score is better by more than a margin."""
        if HIGHER_IS_BETTER[self.metric]:
            return value > self.value + margin
        return value < self.value - margin


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of the most frequent training label; of several, the smallest."""
    labels, counts = np.unique(train_labels, return_counts=True)
    return float(np.mean(test_labels == labels[counts.argmax()]))


def logistic_regression(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> float:
    """Accuracy of logistic regression on flattened, standardized inputs.

    Fitted by scikit-learn, with its L2 penalty, on at most `FITTED` evenly spaced examples.
    """
    kept = evenly(len(train_x), FITTED)
    x, others = (a.reshape(len(a), -1).astype(np.float32) for a in (train_x[kept], test_x))
    mean, spread = x.mean(0), x.std(0)
    spread[spread == 0] = 1
    return _linear((x - mean) / spread, train_y[kept], (others - mean) / spread, test_y)


def bag_of_words(
    train_tokens: np.ndarray, train_y: np.ndarray, test_tokens: np.ndarray, test_y: np.ndarray
) -> float:
    """Accuracy of logistic regression on a binary bag of words; ids 0 and 1 are no words."""
    from scipy import sparse

    width = 1 + max(int(train_tokens.max()), int(test_tokens.max()))

    def presence(tokens: np.ndarray) -> Any:
        rows, places = np.nonzero(tokens > START)
        entries = (np.ones(len(rows), np.float32), (rows, tokens[rows, places]))
        return sparse.csr_matrix(entries, (len(tokens), width)).minimum(1)

    return _linear(presence(train_tokens), train_y, presence(test_tokens), test_y)


def mean_of_targets(train_targets: np.ndarray, test_targets: np.ndarray) -> float:
    """RMSE of predicting the mean of the training targets, (...) of (n, ...)."""
    return _rmse(train_targets.mean(0), test_targets)


def frequencies(train_tokens: np.ndarray, test_tokens: np.ndarray) -> float:
    """Perplexity of a unigram model with add-one smoothing.

    Both are windows (n, length + 1), padded with -1; all tokens but the first are predicted.
    """
    size = 1 + max(int(train_tokens.max()), int(test_tokens.max()))
    counts = np.bincount(train_tokens[train_tokens >= 0], minlength=size) + 1
    found = test_tokens[:, 1:]
    return float(np.exp(-np.log(counts / counts.sum())[found[found >= 0]].mean()))


def persistence(series: Series, split: str = "test") -> float:
    """RMSE of repeating the last known value, in the unit of the series."""
    values, targets, ends = _values(series, split)
    return _rmse(values[ends - series.horizon][:, targets], values[ends][:, targets])


def autoregression(series: Series, order: int, split: str = "test") -> float:
    """RMSE of a linear function of the last `order` values, fitted by least squares on `train`.

    AR(p) of Box and Jenkins (1970), with a constant.
    """
    values, targets, train = _values(series, "train", order)
    ends = _values(series, split, order)[2]

    def rows(ends: np.ndarray) -> np.ndarray:
        lags = ends[:, None] - series.horizon - np.arange(order)
        return np.column_stack([np.ones(len(ends)), values[lags].reshape(len(ends), -1)])

    weights = np.linalg.lstsq(rows(train), values[train][:, targets], rcond=None)[0]
    return _rmse(rows(ends) @ weights, values[ends][:, targets])


def naive_forecasts(panel: Panel, split: str = "test") -> dict[str, float]:
    """MAE of repeating the last value, and the last season, over the horizon of a split."""
    source = panel.splits()[split]
    found: dict[str, list[np.ndarray]] = {"last_value": [], "last_season": []}
    places = panel.length - panel.season + np.arange(panel.horizon) % panel.season
    for start in range(0, len(source), 4096):
        rows = read_examples(source, range(start, min(start + 4096, len(source))))
        x = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
        season = x["past"][:, places, : len(panel.targets)] * x["scale"][:, None]
        for name, forecast in (("last_value", 0.0), ("last_season", season)):
            error = np.abs(x["offset"][:, None] + forecast - x["value"])
            found[name].append(error[x["observed"]])
    return {name: float(np.concatenate(errors).mean()) for name, errors in found.items()}


def anomaly_scores(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> dict[str, float]:
    """Average precision of an isolation forest, and of the best column alone, up or down.

    The forest of scikit-learn is fitted on the normal training rows (Liu et al., 2008). The column
    is chosen by the test rows themselves, which favors it.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import average_precision_score

    forest = IsolationForest(random_state=0).fit(train_x[train_y == 0])
    columns = [sign * column for column in test_x.T for sign in (1, -1)]
    return {
        "isolation forest": float(average_precision_score(test_y, -forest.score_samples(test_x))),
        "best column alone": max(float(average_precision_score(test_y, x)) for x in columns),
    }


def average_precisions(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> dict[str, float]:
    """Average precision of a constant score, logistic regression and gradient boosting.

    Those of scikit-learn are fitted on all rows (n, columns), on which both classes must occur.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = {"constant score": float(test_y.mean())}
    for name, model in (
        ("logistic regression", make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
        ("gradient boosting", HistGradientBoostingClassifier(random_state=0)),
    ):
        scores = model.fit(train_x, train_y).predict_proba(test_x)[:, 1]
        found[name] = float(average_precision_score(test_y, scores))
    return found


def evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` evenly spaced indices below `count`."""
    return np.arange(count) if count <= limit else np.arange(limit) * count // limit


def _linear(x: Any, y: np.ndarray, others: Any, labels: np.ndarray) -> float:
    if len(np.unique(y)) == 1:
        return majority(y, labels)
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model = LogisticRegression(max_iter=200).fit(x, y)
    return float(model.score(others, labels))


def _values(series: Series, split: str, order: int = 0) -> tuple[np.ndarray, list[int], np.ndarray]:
    """All values, the columns to forecast, and the rows that a split forecasts.

    Rows with fewer than `order` values before them are left out.
    """
    names, values = series.read()
    targets = [names.index(name) for name in series.targets or names]
    counts = {name: len(source) for name, source in series.splits().items()}
    first = len(values) - sum(counts.values())
    for name, count in counts.items():
        if name == split:
            places = np.arange(first, first + count)
            return values, targets, places[places >= order + series.horizon - 1]
        first += count
    raise KeyError(split)


def _rmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(found - expected))))
