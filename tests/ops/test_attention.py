"""Attention: equal to JAX's plain definition and to PyTorch's, causal by gradients."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import ops

SHAPES = [  # batch, queries, keys, heads, groups, depth
    (1, 1, 1, 1, 1, 4),
    (2, 7, 7, 4, 2, 8),
    (1, 65, 65, 2, 2, 4),
    (2, 130, 130, 2, 1, 8),
    (1, 5, 9, 3, 3, 4),
]


def draw(batch, queries, keys, heads, groups, depth, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, depth), *[(batch, keys, groups, depth)] * 2]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(query, key, value, *, causal=False, mask=None, scale=None):
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, scale=scale, implementation="xla"
    )


def gradients(function, arguments, **options):
    def total(arguments):
        return jnp.sin(3 * function(*arguments, **options)).sum()

    return jax.grad(total)(arguments)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_plain_definition(shape, causal):
    arguments = draw(*shape)
    for options in ({"causal": causal}, {"causal": causal, "scale": 0.3}):
        found = jax.jit(lambda *a, o=options: ops.attention(*a, **o))(*arguments)
        chex.assert_trees_all_close(found, plain(*arguments, **options), rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(
            gradients(ops.attention, arguments, **options),
            gradients(plain, arguments, **options),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 1, 70), (1, 2, 70, 70), (2, 2, 70, 70), (2, 1, 70, 1)])
def test_masks_hide_keys_and_broadcast(shape, causal):
    arguments = draw(2, 70, 70, 2, 2, 4)
    mask = jnp.asarray(np.random.default_rng(1).random(shape) < 0.7)
    mask = mask.at[..., 0].set(True)  # every query sees something
    options = {"causal": causal, "mask": mask}
    chex.assert_trees_all_close(
        ops.attention(*arguments, **options), plain(*arguments, **options), rtol=1e-5, atol=1e-5
    )
    chex.assert_trees_all_close(
        gradients(ops.attention, arguments, **options),
        gradients(plain, arguments, **options),
        rtol=1e-4,
        atol=1e-4,
    )


def test_what_is_padded_never_changes_a_result():
    query, key, value = draw(1, 6, 6, 2, 2, 4)
    seen = jnp.arange(6) < 4
    mask = seen[None, None, None]
    before = ops.attention(query, key, value, mask=mask)
    noise = jnp.where(seen, 0, 1e3)[None, :, None, None]
    np.testing.assert_array_equal(
        before, ops.attention(query, key + noise, value + noise, mask=mask)
    )


def test_no_output_depends_on_a_later_key():
    query, key, value = draw(1, 70, 70, 1, 1, 2)

    def outputs(key, value):
        return ops.attention(query, key, value, causal=True).sum((0, 2, 3))

    for influence in jax.jacobian(outputs, (0, 1))(key, value):
        reaches = np.abs(influence).sum((1, 3, 4)) > 0
        # The first query sees one key, of whose score nothing depends.
        assert not np.triu(reaches, 1).any()
        assert reaches.any()


def test_under_vmap_and_in_bfloat16():
    query, key, value = draw(3, 66, 66, 2, 2, 4)
    one = jax.vmap(lambda q, k, v: ops.attention(q[None], k[None], v[None], causal=True)[0])
    expected = plain(query, key, value, causal=True)
    chex.assert_trees_all_close(one(query, key, value), expected, rtol=1e-5, atol=1e-5)
    half = ops.attention(*(x.astype(jnp.bfloat16) for x in (query, key, value)), causal=True)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.05)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    arguments = draw(2, 33, 33, 4, 4, 8)
    there = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in arguments]
    expected = torch.nn.functional.scaled_dot_product_attention(*there, is_causal=True)
    found = ops.attention(*arguments, causal=True)
    np.testing.assert_allclose(found, expected.transpose(1, 2).numpy(), rtol=1e-4, atol=1e-5)


def test_on_a_gpu_what_cudnn_refuses_is_done_by_xla_and_logged(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[ops.attention.__module__], "_has_cudnn", lambda: True)
    # JAX refuses, since cuDNN is missing here.
    half = [x.astype(jnp.bfloat16) for x in draw(1, 8, 8, 2, 2, 4)]
    function = jax.jit(functools.partial(gradients, ops.attention, causal=True))
    text = function.trace(half).lower(lowering_platforms=("cuda",)).as_text()
    assert "attention runs without cuDNN" in caplog.text
    assert "cudnn" not in text
