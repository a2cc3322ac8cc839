"""Pooling equals Flax's, in values and, where no two elements tie, in gradients; resizing JAX's."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.errors import UserError
from jdl.ops import max_pool, resize_bilinear

CASES = [
    # shape, window, strides, padding
    ((2, 4, 4, 3), (2, 2), (2, 2), "VALID"),
    ((1, 7, 5, 2), (2, 2), (2, 2), "VALID"),
    ((3, 8, 9, 1), (3, 2), (3, 2), "SAME"),
    ((2, 11, 10, 2), (3, 4), None, "VALID"),
    ((2, 11, 10, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((1, 9, 8, 2), (3, 2), (2, 3), "SAME"),
    ((1, 3, 2, 5), (1, 1), (1, 1), "VALID"),
    ((2, 1, 6, 1), (1, 3), (1, 3), "VALID"),
    ((2, 3, 3, 2), (3, 3), (3, 3), ((2, 0), (0, 1))),
]


def halve(x):
    return max_pool(x, (2, 2), (2, 2))


def distinct(shape, seed=0):
    """Numbers of which no two are equal, negative ones among them."""
    order = np.random.default_rng(seed).permutation(np.prod(shape))
    return (order - order.size // 2).reshape(shape).astype(np.float32) / 8


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_max_pool_and_its_gradient_are_flaxs(shape, window, strides, padding):
    x = jnp.asarray(distinct(shape))

    @jax.jit
    def both(x):
        pairs = [
            jax.vjp(lambda x, pool=pool: pool(x, window, strides, padding), x)
            for pool in (nn.max_pool, max_pool)
        ]
        cotangent = distinct(pairs[0][0].shape, seed=1)
        return [(pooled, pull(cotangent)[0]) for pooled, pull in pairs]

    theirs, ours = both(x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)
    assert np.abs(ours[1]).sum() > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("shape", "window"), [((1, 8, 9, 2), (2, 2)), ((2, 7, 8), (3, 2))])
def test_max_pool_of_16_bits_has_flaxs_derivatives(shape, window, dtype):
    x = jnp.asarray(np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape), dtype)
    pools = [lambda x, pool=pool: pool(x, window, window) for pool in (nn.max_pool, max_pool)]
    pairs = [jax.vjp(pool, x) for pool in pools]
    cotangent = jnp.asarray(distinct(pairs[0][0].shape, seed=1), dtype)
    (expected, wanted), (found, gradient) = ((y, pull(cotangent)[0]) for y, pull in pairs)
    np.testing.assert_array_equal(found, expected)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, wanted)  # all numbers are exact in 8 bits
    tied = jax.linearize(pools[1], jnp.zeros_like(x))[1](jnp.ones_like(x))
    np.testing.assert_allclose(tied, 1, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8])
def test_max_pool_keeps_the_type(dtype):
    x = jnp.asarray(np.random.default_rng(0).permutation(48).reshape(1, 6, 8, 1), dtype)
    pooled = max_pool(x, (2, 2), (2, 2))
    assert pooled.dtype == dtype
    expected = np.asarray(x, np.int32).reshape(1, 3, 2, 4, 2, 1).max((2, 4))
    np.testing.assert_array_equal(np.asarray(pooled, np.int32), expected)


def test_elements_that_tie_share_the_gradient_and_others_have_none():
    x = jnp.asarray([[5.0, 5, 1, 2], [5, 0, 3, 3]]).reshape(1, 2, 4, 1)
    cotangent = jnp.asarray([8.0, 6.0]).reshape(1, 1, 2, 1)
    gradient = np.asarray(jax.vjp(halve, x)[1](cotangent)[0]).reshape(2, 4)
    assert gradient[:, :2].sum() == 8
    assert gradient[:, 2:].sum() == 6
    np.testing.assert_array_equal(
        gradient > 0, [[True, True, False, False], [True, False, True, True]]
    )
    np.testing.assert_array_equal(gradient[1, 2:], [3, 3])


def test_pixels_beyond_the_last_whole_window_are_left_out():
    x = distinct((1, 5, 7, 1))
    x[:, 4:] = x[:, :, 6:] = 1e6
    gradient = jax.grad(lambda x: halve(x).sum())(jnp.asarray(x))
    assert halve(jnp.asarray(x)).max() < 1e6
    assert not gradient[:, 4:].any()
    assert not gradient[:, :, 6:].any()
    assert gradient.sum() == 6


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((8, 8, 4), (2, 2), (2, 2), "VALID"),
        ((5, 7, 1), (3, 2), None, "SAME"),
        ((2, 3, 6, 6, 4), (2, 2), (2, 1), "SAME"),
        ((2, 9, 4), (3,), (2,), "SAME"),
        ((9, 4), (2,), None, ((1, 0),)),
        ((2, 4, 5, 6, 3), (2, 2, 3), (1, 2, 2), "VALID"),
    ],
)
def test_max_pool_of_any_batch_and_spatial_axes_is_flaxs(shape, window, strides, padding):
    x = jax.random.normal(jax.random.key(0), shape)
    expected = nn.max_pool(x, window, strides, padding)
    np.testing.assert_array_equal(max_pool(x, window, strides, padding), expected)


def test_max_pool_of_too_few_axes_is_refused():
    with pytest.raises(UserError, match=r"window \(2, 2\) .* x has shape \(8, 4\)"):
        max_pool(jnp.zeros((8, 4)), (2, 2), (2, 2))


def test_max_pool_has_forward_derivatives_too():
    x, direction = jnp.asarray(distinct((1, 4, 4, 1))), jnp.asarray(distinct((1, 4, 4, 1), 2))
    _, slope = jax.jvp(halve, (x,), (direction,))
    step = 2.0**-8  # smaller than any gap between elements, and exact in binary
    ahead = halve(x + step * direction)
    np.testing.assert_array_equal(slope, (ahead - halve(x)) / step)


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (9, 16), (3, 20), (12, 4), (5, 8)])
def test_bilinear_resizing_equals_jaxs(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, *size, 5)), jnp.float32)

    def plain(x):
        return jax.image.resize(x, (2, *size, 5), "bilinear")

    found, expected = (
        jax.value_and_grad(lambda x, f=f: (weights * f(x)).sum())(x)
        for f in (lambda x: resize_bilinear(x, size), plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(resize_bilinear(x, size), plain(x), atol=1e-6)
    assert resize_bilinear(x.astype(jnp.bfloat16), size).dtype == jnp.bfloat16
