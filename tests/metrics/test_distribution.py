"""The Fréchet distance against its formula with SciPy's matrix root."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jdl.errors import UserError
from jdl.metrics import FrechetDistance, compute, merge


def test_the_distance_in_batches_with_padding_is_that_of_scipy():
    rng = np.random.default_rng(0)
    made, real = rng.normal(0.5, 0.3, (50, 2, 3)), rng.normal(0.4, 0.2, (50, 2, 3)) ** 2
    a, b = made.reshape(50, 6), real.reshape(50, 6)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    parts = []
    for begin in range(0, 50, 20):
        index = np.minimum(np.arange(begin, begin + 20), 49)
        mask = jnp.arange(begin, begin + 20) < 50
        found = FrechetDistance().of(jnp.asarray(made[index]), jnp.asarray(real[index]), mask)
        parts.append({"frechet_distance": found})
    assert compute(merge(parts))["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    one = {"x": FrechetDistance().of(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([True, False]))}
    assert np.isnan(compute(one)["x"])
    with pytest.raises(UserError, match=r"one shape, not \(2, 3\) with \(2, 4\)"):
        FrechetDistance().of(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2, bool))
