"""Probes: simple classifiers of a task's predictions, fitted to training examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A classifier of a task's predictions (examples, features), such as embeddings.

    In an evaluation of one of its `splits`, the task predicts training examples, without
    augmentation, to which the classifier is fitted. Its accuracy on the split is a metric. Labels
    are the task's targets, integers.
    """

    splits: tuple[str, ...] = ("test",)  # whose evaluations have it
    num_train: int | None = None  # training examples, of each class alike many; None: all
    seed: int = 0  # of their choice

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if isinstance(self.splits, str):
            raise UserError(f"{kind}.splits is a tuple: write ({self.splits!r},)")
        if self.num_train is not None and self.num_train < 2:
            raise UserError(f"{kind} needs num_train >= 2 training examples, not {self.num_train}")

    @property
    def name(self) -> str:
        """Of the metric."""
        raise UserError(f"{type(self).__name__} defines no name: return that of its metric")

    def predict(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns the classes (rows,) that it predicts of other rows.

        Args:
          x: features of training examples, (examples, features).
          y: their classes, (examples,).
          rows: features to classify.
        """
        raise UserError(f"{type(self).__name__} defines no predict: return classes of the rows")

    def choose(self, labels: np.ndarray) -> np.ndarray:
        """Returns the sorted indices of the training examples to fit.

        Raises:
          UserError: there are too few, or only one class.
        """
        if len(np.unique(labels)) < 2:
            raise UserError(
                f"{self.name} needs training examples of two classes or more: take it out of "
                f"task.probes"
            )
        if self.num_train is None:
            return np.arange(len(labels))
        if self.num_train > len(labels):
            raise UserError(
                f"{self.name} has num_train={self.num_train}, where there are {len(labels)} "
                f"training examples: lower it"
            )
        order = np.random.default_rng(self.seed).permutation(len(labels))
        ranks = np.empty(len(labels), int)
        for label in np.unique(labels):
            own = labels[order] == label
            ranks[own] = np.arange(own.sum())
        return np.sort(order[np.argsort(ranks, kind="stable")[: self.num_train]])


@dataclass(frozen=True, kw_only=True)
class KNNProbe(Probe):
    """Votes of the nearest training examples by cosine similarity (Wu et al., 2018, section 3.4).

    A neighbor's vote weighs exp(similarity / temperature). Cheap enough to follow training, of
    `validation` with some thousand training examples.
    """

    num_neighbors: int = 20  # that vote, at most all
    temperature: float = 0.07  # of their weights

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_neighbors < 1 or not self.temperature > 0:
            raise UserError(
                f"KNNProbe needs num_neighbors >= 1 and a temperature above 0, not "
                f"{self.num_neighbors} and {self.temperature}"
            )

    @property
    def name(self) -> str:
        """`knn_accuracy`."""
        return "knn_accuracy"

    def predict(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Probe.predict`."""
        from sklearn.neighbors import KNeighborsClassifier

        def weigh(distances: Any) -> Any:
            return np.exp((1 - distances) / self.temperature)

        count = min(self.num_neighbors, len(x))
        options: Any = {"metric": "cosine", "weights": weigh}
        classifier = KNeighborsClassifier(count, **options)
        return classifier.fit(x, y).predict(rows)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probe):
    """Logistic regression by scikit-learn, of features with mean 0 and deviation 1."""

    inverse_l2: float = 1.0  # scikit-learn's C: the smaller, the stronger the penalty

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inverse_l2 > 0:
            raise UserError(f"LinearProbe.inverse_l2 must be above 0, not {self.inverse_l2}")

    @property
    def name(self) -> str:
        """`linear_accuracy`, or `linear_accuracy_100` with 100 training examples."""
        return "linear_accuracy" + ("" if self.num_train is None else f"_{self.num_train}")

    def predict(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Probe.predict`."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        classifier = LogisticRegression(C=self.inverse_l2, max_iter=2000)
        return make_pipeline(StandardScaler(), classifier).fit(x, y).predict(rows)


def check_probes(probes: tuple[Any, ...]) -> None:
    """Raises a UserError unless all are probes, each with a name of its own in a split."""
    names = []
    for probe in probes:
        if not isinstance(probe, Probe):
            example = f"{probe.__name__}()" if isinstance(probe, type) else "LinearProbe()"
            raise UserError(
                f"task.probes holds {probe!r:.60}: it takes objects of jdl.tasks, such as {example}"
            )
        names += [(split, probe.name) for split in probe.splits]
    for split, name in names:
        if names.count((split, name)) > 1:
            raise UserError(
                f"task.probes has two probes named {name!r} of split {split!r}: leave one out"
            )
