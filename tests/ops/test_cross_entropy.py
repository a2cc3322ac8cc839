"""Chunked cross-entropy equals its plain form and stays within its memory bound."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl import ops
from jdl.ops import cross_entropy
from jdl.parallel.base import BATCH, within


def draw(tokens, vocabulary, width):
    rng = np.random.default_rng(tokens)
    hidden = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(vocabulary, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, tokens), jnp.int32)
    weights = jnp.asarray(rng.random(tokens) * (rng.random(tokens) < 0.8), jnp.float32)
    return hidden, kernel, targets, weights


def plain(hidden, kernel, targets, weights):
    logits = (hidden @ kernel.T).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (weights * losses).sum()


@pytest.mark.parametrize("limit", [1 << 24, 64, 7])
@pytest.mark.parametrize("shape", [(1, 2, 1), (13, 11, 4), (24, 7, 3)])
def test_value_and_gradients_equal_the_plain_form(shape, limit, monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", limit)
    *given, targets, weights = draw(*shape)
    both = [
        jax.value_and_grad(lambda h, k, f=f: 2.5 * f(h, k, targets, weights), (0, 1))(*given)
        for f in (ops.linear_cross_entropy, plain)
    ]
    chex.assert_trees_all_close(*both, rtol=1e-5, atol=1e-5)
    value = ops.linear_cross_entropy(*given, targets, weights)
    np.testing.assert_allclose(value, plain(*given, targets, weights), rtol=1e-5)


def test_large_logits_do_not_overflow_and_tokens_without_weight_count_nothing():
    hidden, kernel, targets, weights = draw(9, 5, 3)
    value = ops.linear_cross_entropy(1e3 * hidden, kernel, targets, weights)
    np.testing.assert_allclose(value, plain(1e3 * hidden, kernel, targets, weights), rtol=1e-5)
    gradient = jax.grad(ops.linear_cross_entropy)(hidden, kernel, targets, weights.at[2].set(0))
    assert not gradient[2].any()


def test_no_more_logits_than_the_limit_are_in_memory(monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", 1 << 12)
    hidden, kernel, targets, weights = draw(1 << 10, 1 << 8, 8)

    def largest(function):
        step = jax.jit(jax.grad(function, (0, 1)))
        return step.lower(hidden, kernel, targets, weights).compile().memory_analysis()

    chunked = largest(ops.linear_cross_entropy).temp_size_in_bytes
    assert chunked < 4 * hidden.shape[0] * kernel.shape[0] / 4
    assert largest(plain).temp_size_in_bytes >= 4 * hidden.shape[0] * kernel.shape[0]


def test_chunks_are_left_out_where_no_token_has_weight(monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", 1 << 6)
    monkeypatch.setitem(cross_entropy.TOKENS, "cpu", 4)
    hidden, kernel, targets, _ = draw(20, 16, 4)
    weights = jnp.zeros(20).at[jnp.array([3, 11, 12, 19])].set(1.0)  # one chunk's worth
    # An infinity in a chunk that is computed makes the sum not a number, whatever its weight.
    bad = jnp.where(weights[:, None] == 0, jnp.inf, hidden)
    value, gradient = jax.value_and_grad(ops.linear_cross_entropy)(bad, kernel, targets, weights)
    np.testing.assert_allclose(value, plain(hidden, kernel, targets, weights), rtol=1e-5)
    assert not gradient[weights == 0].any()
    none = jax.value_and_grad(ops.linear_cross_entropy)(hidden, kernel, targets, 0 * weights)
    chex.assert_trees_all_equal(none, (jnp.zeros(()), jnp.zeros_like(hidden)))


def test_each_device_forms_the_chunks_of_its_own_tokens(monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", 1 << 5)
    mesh = jax.make_mesh((2, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    hidden, kernel, targets, weights = draw(20, 16, 4)
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    given = jax.device_put((hidden, kernel, targets, weights), (rows, whole, rows, rows))
    step = jax.jit(within(mesh, jax.value_and_grad(ops.linear_cross_entropy, (0, 1))))
    expected = jax.value_and_grad(plain, (0, 1))(hidden, kernel, targets, weights)
    chex.assert_trees_all_close(step(*given), expected, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in step.lower(*given).compile().as_text()


@pytest.mark.parametrize("limit", [1 << 24, 64])
@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothed_cross_entropy_and_its_gradients_equal_optax(smoothing, limit, monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", limit)
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((13, 4), (11, 4))]
    targets = jnp.asarray(rng.integers(0, 11, 13), jnp.int32)
    weights = jnp.asarray(rng.random(13) * (rng.random(13) < 0.7), jnp.float32)

    def ours(hidden, kernel):
        return ops.linear_cross_entropy(hidden, kernel, targets, weights, smoothing=smoothing)

    def plain(hidden, kernel):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, 11), smoothing)
        return (weights * optax.softmax_cross_entropy(hidden @ kernel.T, labels)).sum()

    found, expected = (jax.value_and_grad(f, (0, 1))(*given) for f in (ours, plain))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
