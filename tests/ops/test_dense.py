"""Dense products equal their plain definition, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jdl import ops

RNG = np.random.default_rng(0)


def draw(*shape: int, scale: float = 1.0, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.normal(0, scale, shape), dtype)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_dense_layer_is_the_same_by_flattened_rows(shape, dtype):
    x, weight = draw(*shape, dtype=dtype), draw(*shape[:-1], 7)
    plain, ours = nn.Dense(7, dtype=dtype), nn.Dense(7, dtype=dtype, dot_general=ops.dot_general)
    params = plain.init(jax.random.key(0), x)

    def loss(params, x, layer):
        return (layer.apply(params, x) * weight).sum()

    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    assert_allclose(
        ours.apply(params, x).astype(jnp.float32),
        plain.apply(params, x).astype(jnp.float32),
        rtol=tolerance,
        atol=tolerance,
    )
    for one, other in zip(
        jax.tree.leaves(jax.grad(loss, (0, 1))(params, x, ours)),
        jax.tree.leaves(jax.grad(loss, (0, 1))(params, x, plain)),
        strict=True,
    ):
        assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("contracting", [((0,), (0,)), ((2,), (1,)), ((1, 2), (0, 1))])
def test_other_products_go_to_xla(contracting):
    lhs, rhs = draw(5, 5, 7), draw(5, 7)
    assert contracting[0] != (2,) or rhs.shape[1] == lhs.shape[2]
    dimensions = (contracting, ((), ()))
    assert_allclose(
        ops.dot_general(lhs, rhs, dimensions), jax.lax.dot_general(lhs, rhs, dimensions)
    )


def test_forward_mode_goes_through_the_product():
    x, w = draw(2, 3, 5), draw(5, 7)
    dimensions = (((2,), (0,)), ((), ()))
    _, tangent = jax.jvp(lambda x: ops.dot_general(x, w, dimensions), (x,), (jnp.ones_like(x),))
    assert_allclose(tangent, jnp.ones_like(x) @ w, rtol=1e-5)
