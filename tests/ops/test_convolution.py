"""Convolution as a matrix product equals XLA's and SciPy's, on random shapes."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jdl import ops


def draw(seed):
    """A random problem: images, a kernel, and how they meet."""
    rng = np.random.default_rng(seed)
    window, strides, dilation = (tuple(rng.integers(1, n, 2).tolist()) for n in (4, 4, 3))
    size = [int(rng.integers((w - 1) * d + 1, 12)) for w, d in zip(window, dilation, strict=True)]
    channels, outputs = (int(n) for n in rng.integers(1, 5, 2))
    lhs = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(*window, channels, outputs)), jnp.float32)
    pads = [tuple(map(int, rng.integers(0, 3, 2))) for _ in range(2)]
    padding = [pads, "SAME", "VALID"][int(rng.integers(3))]
    return lhs, rhs, strides, padding, dilation


def plain(lhs, rhs, strides, padding, dilation):
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def ours(lhs, rhs, strides, padding, dilation):
    return ops.conv_general_dilated(lhs, rhs, strides, padding, rhs_dilation=dilation)


@pytest.mark.parametrize("seed", range(12))
def test_values_gradients_and_tangents_equal_xlas(seed):
    lhs, rhs, *how = draw(seed)
    found, expected = (
        jax.jvp(lambda x, k, f=f: f(x, k, *how), (lhs, rhs), (jnp.sin(lhs), jnp.cos(rhs)))
        for f in (ours, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)

    def total(arguments, function):
        return jnp.sin(function(*arguments, *how)).sum()

    found, expected = (
        jax.jit(jax.grad(total), static_argnums=1)((lhs, rhs), f) for f in (ours, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_equals_scipy():
    lhs, rhs, *_ = draw(1)
    found = ops.conv_general_dilated(lhs, rhs, (1, 1), "VALID")
    for image, outputs in zip(np.asarray(lhs), np.asarray(found), strict=True):
        for index in range(rhs.shape[-1]):
            expected = sum(
                scipy.signal.correlate2d(image[..., c], rhs[..., c, index], "valid")
                for c in range(rhs.shape[2])
            )
            np.testing.assert_allclose(outputs[..., index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"features": 6, "kernel_size": (3, 3), "padding": "VALID", "strides": 2},
        {"features": 6, "kernel_size": (3, 2), "feature_group_count": 3},
        {"features": 2, "kernel_size": (3, 3), "input_dilation": 2, "padding": 1},
        {"features": 2, "kernel_size": (2, 2), "padding": "CIRCULAR"},
    ],
)
def test_in_flax_it_takes_the_place_of_xlas(options):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 3)), jnp.float32)
    layer = nn.Conv(**options)
    variables = layer.init(jax.random.key(0), x)
    other = nn.Conv(**options, conv_general_dilated=ops.conv_general_dilated)
    chex.assert_trees_all_close(
        other.apply(variables, x), layer.apply(variables, x), rtol=1e-5, atol=1e-5
    )


def test_under_vmap_and_in_bfloat16():
    lhs, rhs, *_ = draw(3)
    how = ((1, 1), "SAME", (1, 1))
    several = jax.vmap(lambda x: ours(x, rhs, *how))(jnp.stack([lhs, 2 * lhs]))
    one = plain(lhs, rhs, *how)
    chex.assert_trees_all_close(several, jnp.stack([one, 2 * one]), rtol=1e-4, atol=1e-4)
    half = ours(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), *how)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), one, rtol=0.05, atol=0.1)


def test_elsewhere_xla_does_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    lhs, rhs, *how = draw(0)
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x, k: ours(x, k, *how))(lhs, rhs))
