"""Products equal their plain definition, derivatives included, with and without oneDNN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jdl import ops
from jdl.analysis import flops
from jdl.ops import dot, onednn

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


@pytest.fixture(params=["onednn", "xla"])
def form(request, monkeypatch):
    """Multiplies by oneDNN, small matrices too, and by XLA."""
    monkeypatch.setattr(dot, "LEAST", 1)
    if request.param == "xla":
        monkeypatch.setattr(onednn, "library", lambda: None)
    elif onednn.library() is None:
        pytest.skip("needs the extra `onednn` and a C++ compiler")
    jax.clear_caches()  # of lowered programs
    yield request.param
    jax.clear_caches()


AXES = [(1, 0), (1, 1), (0, 0), (0, 1)]


def matrices(axes: tuple[int, int], dtype=jnp.float32) -> list[jax.Array]:
    shapes = [(3, 5) if axes[0] else (5, 3), (7, 5) if axes[1] else (5, 7)]
    return [draw(*shape, dtype=dtype) for shape in shapes]


def plain(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return jnp.tensordot(a, b, axes=((axes[0],), (axes[1],)))


@pytest.mark.parametrize("axes", AXES)
def test_a_product_and_its_derivatives_equal_their_definition(axes, form):
    arguments = matrices(axes)
    jax.test_util.check_grads(lambda a, b: ops.product(a, b, axes), arguments, order=2, rtol=2e-2)
    compiled = jax.jit(lambda a, b: ops.product(a, b, axes)).lower(*arguments)
    assert (onednn.PRODUCT in compiled.as_text()) == (form == "onednn")
    gradients = [
        jax.grad(lambda a, b, f=f: jnp.sin(f(a, b, axes)).sum(), (0, 1))(*arguments)
        for f in (ops.product, plain)
    ]
    for one, other in zip(*gradients, strict=True):
        assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("mapped", [(0, None), (None, 2), (1, 0)])
def test_a_product_under_vmap_equals_its_definition(axes, mapped, form):
    a, b = (
        x if axis is None else jnp.stack([x, 2 * x, -x], axis)
        for x, axis in zip(matrices(axes), mapped, strict=True)
    )
    found, expected = (
        jax.vmap(lambda a, b, f=f: f(a, b, axes), mapped)(a, b) for f in (ops.product, plain)
    )
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_elsewhere_do_not_need_onednn(form):
    """In 16 bits, in exported programs, for several devices and for other platforms."""
    function = jax.jit(ops.product)
    a, b = matrices((1, 0))
    halves = [x.astype(jnp.bfloat16) for x in (a, b)]
    assert onednn.PRODUCT not in function.lower(*halves).as_text()
    exported = jax.export.export(function)(a, b)
    assert onednn.PRODUCT not in exported.mlir_module()
    assert_allclose(exported.call(a, b), a @ b, rtol=1e-5, atol=1e-5)
    rows = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec())
    split = [jax.device_put(x, rows) for x in (a, b)]
    assert onednn.PRODUCT not in function.lower(*split).as_text()
    assert_allclose(function(*split), a @ b, rtol=1e-5, atol=1e-5)
    text = function.trace(a, b).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.dot_general" in text
    assert "custom_call" not in text


@pytest.mark.parametrize("axes", AXES)
def test_flops_of_a_product_are_xlas(axes):
    products = [lambda a, b, f=f: f(a, b, axes) for f in (ops.product, plain)]
    found, expected = (flops.count(f, *matrices(axes)).flops for f in products)
    assert found == expected == 2 * 3 * 5 * 7


def test_a_product_is_stored_where_dots_are():
    """Recomputing a feed-forward network's activation does not multiply again."""

    def hidden(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(ops.product(x, kernel))

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.checkpoint(hidden, policy=ops.products_saveable)(x, kernel).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*matrices((1, 0)))
    assert str(jaxpr).count(dot.product_p.name) == 3  # forward, and two gradients
