"""Metrics of embeddings against scikit-learn, formulas and plain loops."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_curve

from jdl.errors import UserError
from jdl.metrics import ClusterAgreement, EqualErrorRate, RecallAtK, equal_error

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 60)
X = (np.eye(4)[LABELS] + RNG.normal(size=(60, 4)) * 0.6).astype(np.float32)
ROWS = {"prediction": X, "targets": LABELS}


def pairs():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    i, j = np.triu_indices(60, 1)
    return (unit @ unit.T)[i, j], LABELS[i] == LABELS[j]


def test_the_equal_error_rate_is_that_of_the_curve():
    near, same = pairs()
    false, true, _ = roc_curve(same, near, drop_intermediate=False)
    rate = EqualErrorRate().compute(ROWS)
    best = np.argmin(np.abs(false - (1 - true)))
    assert rate == pytest.approx((false[best] + 1 - true[best]) / 2, abs=1e-6)
    limit = EqualErrorRate(threshold=True).compute(ROWS)
    errors = [(near[same] < limit).mean(), (near[~same] >= limit).mean()]
    assert np.mean(errors) == pytest.approx(rate, abs=1e-6)
    assert abs(errors[0] - errors[1]) < 0.01
    few = EqualErrorRate(max_examples=20).compute(ROWS)
    chosen = np.linspace(0, 59, 20).round().astype(int)
    part = {"prediction": X[chosen], "targets": LABELS[chosen]}
    assert few == EqualErrorRate().compute(part) != rate


def test_equal_errors_of_similarities_that_are_apart_and_of_none():
    rate, threshold = equal_error(np.array([0.8, 0.9]), np.array([0.1, 0.4]))
    assert (rate, threshold) == (0, pytest.approx(0.6))
    assert equal_error(np.array([0.1, 0.2]), np.array([0.8, 0.9]))[0] == 1
    assert np.isnan(equal_error(np.array([]), np.array([0.1]))).all()
    assert np.isnan(equal_error(np.array([np.nan]), np.array([0.1]))).all()


@pytest.mark.parametrize("k", [1, 5])
def test_recall_is_that_of_a_loop(k):
    near = pairs()[0]
    whole = np.full((60, 60), -np.inf)
    whole[np.triu_indices(60, 1)] = near
    whole = np.maximum(whole, whole.T)
    hits = [LABELS[i] in LABELS[np.argsort(-whole[i])[:k]] for i in range(60)]
    assert RecallAtK(k=k).compute(ROWS) == pytest.approx(np.mean(hits))


def test_examples_without_another_of_their_class_do_not_count():
    labels = np.array([0, 0, 1])
    x = np.array([[1, 0], [0.9, 0.1], [0, 1]])
    assert RecallAtK().compute({"prediction": x, "targets": labels}) == 1
    assert np.isnan(RecallAtK().compute({"prediction": x, "targets": np.arange(3)}))


def entropy(counts):
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_clusters_agree_as_scikit_learn_and_the_formulas_say():
    clusters = KMeans(4, n_init=4, random_state=0).fit_predict(X)
    table = np.zeros((4, 4))
    np.add.at(table, (LABELS, clusters), 1)
    one, other = entropy(table.sum(1)), entropy(table.sum(0))
    nmi = (one + other - entropy(table.ravel())) / ((one + other) / 2)
    found = ClusterAgreement(num_clusters=4).compute(ROWS)
    assert (
        found == pytest.approx(nmi) == pytest.approx(normalized_mutual_info_score(LABELS, clusters))
    )
    both, a, b = ((t * (t - 1) / 2).sum() for t in (table, table.sum(1), table.sum(0)))
    chance = a * b / (60 * 59 / 2)
    ari = (both - chance) / ((a + b) / 2 - chance)
    found = ClusterAgreement(score="ari", num_clusters=4).compute(ROWS)
    assert found == pytest.approx(ari) == pytest.approx(adjusted_rand_score(LABELS, clusters))
    few = {"prediction": X[:3], "targets": LABELS[:3]}
    assert np.isnan(ClusterAgreement(num_clusters=4).compute(few))


def test_what_is_refused():
    with pytest.raises(UserError, match="num_clusters >= 2"):
        ClusterAgreement(num_clusters=1)
    with pytest.raises(UserError, match="k >= 1"):
        RecallAtK(k=0)
    with pytest.raises(UserError, match="max_examples >= 3"):
        EqualErrorRate(max_examples=2)
    with pytest.raises(UserError, match=r"needs embeddings \(batch, features\)"):
        RecallAtK().compute({"prediction": X, "targets": X})
