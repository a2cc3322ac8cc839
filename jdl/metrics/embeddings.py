"""Metrics of embeddings (examples, features) with integer targets (examples,)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jdl.errors import UserError
from jdl.metrics.metric import MAX_BYTES, Metric

CHUNK = 1000
"""Rows whose similarities to all others are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class EqualErrorRate(Metric):
    """Error of telling whether two examples are of one class, by their cosine similarity.

    Over all pairs, at the threshold at which the share of pairs of one class below it equals that
    of pairs of two classes at or above it. Not a number where a split has no pair of either kind.
    """

    higher_is_better: ClassVar[bool | None] = False
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    in_training: ClassVar[bool] = False
    threshold: bool = False  # that threshold, by which `jdl verify` decides, instead of the error
    max_examples: int = 5000  # evenly spaced ones, if there are more
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def __post_init__(self) -> None:
        if self.max_examples < 3:
            raise UserError(f"EqualErrorRate needs max_examples >= 3, not {self.max_examples}")

    @property
    def name(self) -> str:
        """`equal_error_rate` or `equal_error_threshold`."""
        return "equal_error_threshold" if self.threshold else "equal_error_rate"

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the rate or the threshold."""
        x, labels = _embeddings(self, statistics)
        count = min(len(x), self.max_examples)
        chosen = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int))
        x, labels = x[chosen], labels[chosen]
        same, other = [], []
        for begin in range(0, len(x), CHUNK):
            near = x[begin : begin + CHUNK] @ x.T
            later = np.arange(len(x)) > np.arange(begin, begin + len(near))[:, None]
            alike = labels[begin : begin + CHUNK, None] == labels
            same.append(near[later & alike])
            other.append(near[later & ~alike])
        rate, threshold = equal_error(np.concatenate(same), np.concatenate(other))
        return threshold if self.threshold else rate


def equal_error(same: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Computes the equal error rate of similarities, and its threshold.

    Args:
      same: similarities of pairs that belong together, (pairs,).
      other: of pairs that do not.

    Returns:
      The mean of the two error rates where they are nearest to each other, and the similarity from
      which on pairs are then taken to belong together; NaN of no pairs or what is not finite.
    """
    if not (len(same) and len(other)) or not all(np.isfinite(x).all() for x in (same, other)):
        return float("nan"), float("nan")
    same, other = np.sort(same), np.sort(other)
    thresholds = np.unique(np.concatenate([same, other]))
    rejected = np.searchsorted(same, thresholds) / len(same)
    accepted = 1 - np.searchsorted(other, thresholds) / len(other)
    best = int(np.argmin(np.abs(rejected - accepted)))
    # Halfway to the next lower similarity the decisions are the same, and new pairs get their share
    # of the gap.
    threshold = thresholds[max(best - 1, 0) : best + 1].mean(dtype=np.float64)
    return float((rejected[best] + accepted[best]) / 2), float(threshold)


@dataclass(frozen=True, kw_only=True)
class RecallAtK(Metric):
    """Share of examples with one of their class among the k nearest others, by cosine similarity.

    Of the examples whose class has another; not a number where none has.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    in_training: ClassVar[bool] = False
    k: int = 1  # nearest others
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"RecallAtK needs k >= 1, not {self.k}")

    @property
    def name(self) -> str:
        """`recall_at_1` for k = 1."""
        return f"recall_at_{self.k}"

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the share."""
        x, labels = _embeddings(self, statistics)
        if not np.isfinite(x).all():
            return float("nan")
        k, found = min(self.k, len(x) - 1), np.zeros(len(x), bool)
        for begin in range(0, len(x) if k else 0, CHUNK):
            near = x[begin : begin + CHUNK] @ x.T
            rows = np.arange(len(near))
            near[rows, begin + rows] = -np.inf
            nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
            found[begin + rows] = (labels[nearest] == labels[begin + rows, None]).any(1)
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        paired = counts[inverse] > 1
        return float(found[paired].mean()) if paired.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class ClusterAgreement(Metric):
    """Agreement of the classes with clusters of the embeddings by k-means, both by scikit-learn.

    Normalized mutual information, or the adjusted Rand index, which is 0 for random clusters.
    """

    higher_is_better: ClassVar[bool | None] = True
    merge: ClassVar[Literal["sum", "concatenate"]] = "concatenate"
    in_training: ClassVar[bool] = False
    score: Literal["nmi", "ari"] = "nmi"  # normalized mutual information, or adjusted Rand index
    num_clusters: int = 10  # k
    num_init: int = 4  # initial centers, of which the best result counts
    seed: int = 0  # of these
    max_bytes: int = MAX_BYTES  # largest size of a split's predictions on the host

    def __post_init__(self) -> None:
        if self.num_clusters < 2 or self.num_init < 1:
            raise UserError(
                f"ClusterAgreement needs num_clusters >= 2 and num_init >= 1, not "
                f"{self.num_clusters} and {self.num_init}"
            )

    @property
    def name(self) -> str:
        """`nmi` or `ari`."""
        return self.score

    def compute(self, statistics: dict[str, Any]) -> float:
        """Returns the score; not a number of fewer examples than clusters."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        x, labels = _embeddings(self, statistics, normalize=False)
        if len(x) < self.num_clusters or not np.isfinite(x).all():
            return float("nan")
        starts: Any = {"n_init": self.num_init, "random_state": self.seed}
        means = KMeans(self.num_clusters, **starts)
        scores = {"nmi": normalized_mutual_info_score, "ari": adjusted_rand_score}
        return float(scores[self.score](labels, means.fit_predict(x)))


def _embeddings(
    metric: Metric, statistics: dict[str, Any], normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings of length 1, or as they are, and labels.

    Raises:
      UserError: they are not of shape (examples, features) and (examples,).
    """
    x, labels = np.asarray(statistics["prediction"], np.float32), statistics["targets"]
    if x.ndim != 2 or labels.ndim != 1:
        raise UserError(
            f"{metric.name} needs embeddings (batch, features) with targets (batch,), not "
            f"{x.shape} with {labels.shape}"
        )
    if normalize:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x, labels
