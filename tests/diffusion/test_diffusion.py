"""Paths, samplers and inpainting on Gaussians, whose equations have exact solutions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.diffusion import (
    DDIM,
    CosinePath,
    DPMSolver,
    Euler,
    Heun,
    LinearPath,
    VariancePreserving,
    repaint,
)
from jdl.errors import UserError

PATHS = LINEAR, COSINE, VP = LinearPath(), CosinePath(), VariancePreserving()
MEAN, SPREAD = 0.7, 0.4  # of the data
X = jnp.linspace(-1.5, 1.5, 6)[:, None]
KEYS = jax.random.split(jax.random.key(0), 6)


def exact(path):
    """The posterior means of data and noise, for data N(MEAN, SPREAD^2)."""

    def denoise(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        score = (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        return MEAN + alpha * SPREAD**2 * score, sigma * score

    return denoise


def solution(path):
    """Where the equation takes X: the map keeps the quantile."""
    t = path.end
    return MEAN + SPREAD * (X - path.alpha(t) * MEAN) / jnp.sqrt(
        path.alpha(t) ** 2 * SPREAD**2 + path.sigma(t) ** 2
    )


@pytest.mark.parametrize(
    ("make", "path", "order"),
    [
        (Euler, LINEAR, 1),
        (DDIM, VP, 1),
        (Heun, COSINE, 2),
        (Heun, VP, 2),
        (DPMSolver, LINEAR, 2),
        (DPMSolver, VP, 2),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_a_sampler_converges_to_the_exact_solution_with_its_order(make, path, order):
    # Evenly spaced times are far from even in log SNR, in which DPMSolver extrapolates.
    counts = (96, 384) if make is DPMSolver else (24, 96)
    found = jax.jit(lambda: [make(n)(exact(path), path, X, KEYS) for n in counts])()
    coarse, fine = (float(abs(x - solution(path)).max()) for x in found)
    assert fine < {1: 0.02, 2: 5e-4}[order]
    assert order - 0.4 < np.log2(coarse / fine) / 2 < order + 0.7, (coarse, fine)


@pytest.mark.parametrize("path", PATHS, ids=lambda x: type(x).__name__)
def test_conversions_are_inverse(path):
    data, noise = jax.random.normal(jax.random.key(1), (2, 4, 3, 2))
    t, step = jnp.linspace(path.begin + 0.01, path.end - 0.01, 4), 1e-3

    @jax.jit
    def convert():
        x = path.point(data, noise, t)
        found = [
            path.data_and_noise(kind, path.target(kind, data, noise, t), x, t)
            for kind in ("noise", "v", "velocity")
        ]
        slope = path.point(data, noise, t + step) - path.point(data, noise, t - step)
        return found, path.velocity(data, noise, t), slope / (2 * step)

    found, velocity, slope = convert()
    for pair in found:
        np.testing.assert_allclose(pair, (data, noise), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(velocity, slope, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(path.point(data, noise, 0.0), data)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_equals_its_textbook_update(eta):
    path = VariancePreserving()
    noise = jnp.array([[0.3], [-1.1], [0.5], [0.2], [0.0], [2.0]])

    def denoise(x, t):
        return path.data_and_noise("noise", noise, x, t)

    t, s = path.times(5)[1:3]
    found, _ = DDIM(5, eta=eta).step(denoise, path, X, t, s, (), KEYS)
    # Song et al. (2021), equations 12 and 16, in the accumulated products of 1 - beta.
    now, new = (np.exp(-(20 - 0.1) * u**2 / 2 - 0.1 * u) for u in (float(t), float(s)))
    spread = eta * np.sqrt((1 - new) / (1 - now)) * np.sqrt(1 - now / new)
    fresh = jax.vmap(lambda key: jax.random.normal(key, (1,)))(KEYS)
    data = (X - np.sqrt(1 - now) * noise) / np.sqrt(now)
    expected = np.sqrt(new) * data + np.sqrt(1 - new - spread**2) * noise + spread * fresh
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_dpm_solver_equals_its_textbook_update():
    path = CosinePath()
    t, s, u = jnp.array(0.6), jnp.array(0.5), jnp.array(0.75)
    last, data = jnp.full_like(X, 0.2), jnp.full_like(X, 0.3)
    found, memory = DPMSolver(4).step(lambda x, t: (data, x), path, X, t, s, (last, u), KEYS)
    # Lu et al. (2022), algorithm 2.
    lam = [float(jnp.log(path.alpha(v) / path.sigma(v))) for v in (u, t, s)]
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    blend = (1 + 1 / (2 * r)) * data - last / (2 * r)
    expected = path.sigma(s) / path.sigma(t) * X - path.alpha(s) * np.expm1(-h) * blend
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (memory[0] == data).all()
    assert memory[1] == t


@pytest.mark.parametrize("path", [LINEAR, VP], ids=lambda x: type(x).__name__)
def test_ancestral_sampling_and_resampling_keep_the_distribution(path):
    keys = jax.random.split(jax.random.key(2), 2000)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    drawn = jax.jit(lambda: DDIM(200, eta=1.0)(exact(path), path, noise, keys))()
    assert abs(float(drawn.mean()) - MEAN) < 0.02
    assert abs(float(drawn.std()) - SPREAD) < 0.03
    # The elements are independent: what is drawn of one does not depend on what is kept.
    mask, image = jnp.array([True, False]), jnp.broadcast_to(jnp.array([9.0, 0.123]), noise.shape)
    painted = jax.jit(
        lambda: repaint(
            exact(path), path, noise, keys, image=image, mask=mask, num_steps=100, resamplings=2
        )
    )()
    assert (painted[:, 1] == jnp.float32(0.123)).all()
    assert abs(float(painted[:, 0].mean()) - MEAN) < 0.03
    assert abs(float(painted[:, 0].std()) - SPREAD) < 0.05


def test_painted_pixels_follow_those_that_are_kept():
    path, rho = LinearPath(), 0.95
    cov = SPREAD**2 * jnp.array([[1, rho], [rho, 1]])

    def denoise(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        score = jnp.linalg.solve(alpha**2 * cov + sigma**2 * jnp.eye(2), (x - alpha * MEAN).T).T
        return MEAN + alpha * score @ cov, sigma * score

    keys = jax.random.split(jax.random.key(3), 1000)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    kept, mask = MEAN + 2 * SPREAD, jnp.array([True, False])
    image = jnp.broadcast_to(jnp.array([0.0, kept]), noise.shape)
    errors = []
    for resamplings in (1, 8):
        settings = {"mask": mask, "num_steps": 24, "resamplings": resamplings}
        found = jax.jit(partial(repaint, denoise, path, noise, keys, image=image, **settings))()
        errors.append(abs(float(found[:, 0].mean()) - (MEAN + rho * 2 * SPREAD)))
    assert errors[1] < 0.15 * SPREAD
    assert errors[1] < 0.5 * errors[0]


def test_a_sampler_begins_at_a_time_and_takes_a_step():
    path, t = LinearPath(), 0.3
    found = jax.jit(lambda: Heun(20)(exact(path), path, X, KEYS, start=t))()
    width = jnp.sqrt(path.alpha(t) ** 2 * SPREAD**2 + path.sigma(t) ** 2)
    expected = MEAN + SPREAD * (X - path.alpha(t) * MEAN) / width
    np.testing.assert_allclose(found, expected, atol=2e-3)
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        Euler(0)
