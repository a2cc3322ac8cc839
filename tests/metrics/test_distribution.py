"""Distances of sets against SciPy's matrix root, scikit-learn, and torch-fidelity."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from jdl.errors import UserError
from jdl.metrics import (
    FrechetDistance,
    compute,
    frechet_distance,
    kernel_distance,
    merge,
    nearest_distances,
    precision_and_recall,
)


def sets(d=6):
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 0.3, (50, d)), rng.normal(0.4, 0.5, (60, d)) ** 2


def expected_frechet(a, b):
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)


def test_the_distance_in_batches_with_padding_is_that_of_scipy():
    made, real = sets()
    real = real[:50]
    parts = []
    for begin in range(0, 50, 20):
        index = np.minimum(np.arange(begin, begin + 20), 49)
        mask = jnp.arange(begin, begin + 20) < 50
        images = [jnp.asarray(x[index].reshape(20, 2, 3)) for x in (made, real)]
        parts.append({"frechet_distance": FrechetDistance().of(*images, mask)})
    expected = expected_frechet(made, real)
    assert compute(merge(parts))["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(made, real) == pytest.approx(expected, rel=1e-9)
    one = {"x": FrechetDistance().of(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([True, False]))}
    assert np.isnan(compute(one)["x"])
    with pytest.raises(UserError, match=r"one shape, not \(2, 3\) with \(2, 4\)"):
        FrechetDistance().of(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2, bool))


def test_kernel_distances_are_those_of_scikit_learn_and_unbiased():
    x, y = sets()

    def discrepancy(a, b):
        of = {"degree": 3, "gamma": 1 / 6, "coef0": 1}
        n = len(a)
        within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (
            polynomial_kernel(a, **of), polynomial_kernel(b, **of)
        )]  # fmt: skip
        return sum(within) - 2 * polynomial_kernel(a, b, **of).mean()

    assert kernel_distance(x, y[:50], num_subsets=1)[0] == pytest.approx(discrepancy(x, y[:50]))
    rng = np.random.RandomState(7)
    drawn = [
        discrepancy(x[rng.choice(50, 20, replace=False)], y[rng.choice(60, 20, replace=False)])
        for _ in range(5)
    ]
    found = kernel_distance(x, y, num_subsets=5, subset_size=20, seed=7)
    np.testing.assert_allclose(found, (np.mean(drawn), np.std(drawn)))
    halves = np.random.default_rng(1).normal(size=(2, 2000, 4))
    mean, std = kernel_distance(*halves, num_subsets=50, subset_size=200)
    assert abs(mean) < std / 2


def test_precision_and_recall_are_those_of_scikit_learns_neighbors():
    x, y = sets(3)

    def inside(points, of, k=3):
        radii = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, k]
        return (np.linalg.norm(points[:, None] - of, axis=2) <= radii).any(1).mean()

    found = precision_and_recall(x, y)
    assert found == (inside(x, y), inside(y, x))
    assert 0 < found[0] < 1
    assert precision_and_recall(x, x) == (1, 1)


def test_nearest_distances_are_exact_for_copies():
    x, y = sets()
    rows = np.concatenate([x, y[:5]])
    expected = NearestNeighbors(n_neighbors=1).fit(y).kneighbors(rows)[0][:, 0]
    found = nearest_distances(rows, y)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(found[-5:], 0)


def test_what_has_no_value_is_nan():
    x, y = sets()
    broken = x.copy()
    broken[3, 2] = np.nan
    for a, b in ((broken, y), (x, broken), (x[:1], y), (x, y[:1])):
        found = (frechet_distance(a, b), *kernel_distance(a, b), *precision_and_recall(a, b))
        assert np.isnan(found).all()


def test_all_are_those_of_torch_fidelity():
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)), rng.normal(0.2, 1.2, size=(300, 8))
    one, other = (torch.asarray(each, dtype=torch.float64) for each in (x, y))
    kid = kid_features_to_metric(
        one, other, kid_subsets=10, kid_subset_size=100, kid_degree=3, kid_gamma=None, kid_coef0=1,
        rng_seed=2020, kid_kernel="poly", verbose=False,
    )  # fmt: skip
    np.testing.assert_allclose(
        kernel_distance(x, y, num_subsets=10, subset_size=100), list(kid.values()), rtol=1e-6
    )
    statistics = [fid_features_to_statistics(each) for each in (one, other)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    np.testing.assert_allclose(frechet_distance(x, y), list(fid.values()), rtol=1e-6)
    prc = prc_features_to_metric(
        one, other, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    precision, recall = precision_and_recall(x, y)
    assert prc["precision"] == pytest.approx(precision)
    assert prc["recall"] == pytest.approx(recall)
