"""Metrics are sums that merge exactly, and equal the definitions of scikit-learn."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_absolute_error, root_mean_squared_error

from jdl.config.experiment_file import available, documentation, load
from jdl.errors import UserError
from jdl.metrics import HIGHER_IS_BETTER, Mean, Perplexity, RootMean, compute, merge

# Multiples of 1/64 this small add up without rounding, in whatever order.
exact = st.lists(st.integers(-1024, 1024).map(lambda n: n / 64), min_size=1, max_size=40)


def of(values, kind=Mean):
    total, count = np.float32(np.sum(values)), np.float32(len(values))
    return {"score": kind(total, count)}


@settings(deadline=None)
@given(values=exact, data=st.data())
def test_any_partition_in_any_order_merges_to_the_whole(values, data):
    order = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(values)), max_size=6)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    merged = merge(of(part) for part in parts)
    assert merged["score"].count == len(values)
    assert compute(merged) == {"score": sum(values) / len(values)}
    nested = merge([merge(map(of, parts[:2])), *map(of, parts[2:])])
    assert compute(nested) == compute(merged)


def test_merging_adds_in_float64():
    parts = [of([0.1])] * 10_000
    merged = merge(parts)
    assert merged["score"].count == 10_000
    assert compute(merged)["score"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    in_float32 = np.float32(0)
    for _ in range(10_000):
        in_float32 += np.float32(0.1)
    assert abs(in_float32 / 10_000 - 0.1) > 5e-6


def test_merging_keeps_the_kind_and_the_names():
    parts = [{"a": Perplexity(1.0, 2.0), "b": RootMean(3.0, 4.0)}] * 3
    merged = merge(parts)
    assert {name: type(metric) for name, metric in merged.items()} == {
        "a": Perplexity,
        "b": RootMean,
    }
    assert (merged["a"].total, merged["b"].count) == (3, 12)
    assert merge([]) == {}


def test_a_mean_counts_what_the_mask_lets_through():
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random((5, 3)) < 0.5
    hidden = np.where(mask, values, np.nan)
    found = Mean.of(jnp.asarray(hidden), jnp.asarray(mask))
    assert found.count == mask.sum()
    np.testing.assert_allclose(found.compute(), values[mask].mean(), rtol=1e-6)
    nothing = Mean.of(jnp.asarray(hidden), jnp.zeros((5, 3)))
    assert (nothing.total, nothing.count) == (0, 0)


def test_a_mask_may_weigh():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.0, 2.0])
    found = Mean.of(jnp.asarray(values), jnp.asarray(weights))
    np.testing.assert_allclose(found.compute(), np.average(values, weights=weights), rtol=1e-6)
    assert found.count == 2.5


def test_masked_values_have_no_gradient():
    mask = jnp.array([True, False, True])
    gradient = jax.grad(lambda values: Mean.of(values, mask).total)(jnp.array([1.0, 1e30, 3.0]))
    np.testing.assert_array_equal(gradient, [1, 0, 1])


def test_perplexity_is_that_of_scikit_learns_log_loss():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(4), 30)
    labels = rng.integers(0, 4, 30)
    nats = -np.log(chances[np.arange(30), labels])
    merged = merge([of(nats[:11], Perplexity), of(nats[11:], Perplexity)])
    expected = math.exp(log_loss(labels, chances, labels=range(4)))
    assert compute(merged)["score"] == pytest.approx(expected, rel=1e-6)
    per_batch = [Perplexity(nats[a:b].sum(), b - a).compute() for a, b in ((0, 11), (11, 30))]
    assert np.average(per_batch, weights=[11, 19]) != pytest.approx(expected, rel=1e-3)
    assert compute({"perplexity": Perplexity(1e5, 1.0)}) == {"perplexity": math.inf}


def test_root_mean_and_mean_are_scikit_learns():
    rng = np.random.default_rng(0)
    found, truth = rng.normal(size=(2, 50))
    error = found - truth
    merged = merge([of(error[:7] ** 2, RootMean), of(error[7:] ** 2, RootMean)])
    expected = root_mean_squared_error(truth, found)
    assert compute(merged)["score"] == pytest.approx(expected, rel=1e-6)
    absolute = merge([of(abs(error[:7])), of(abs(error[7:]))])
    assert compute(absolute)["score"] == pytest.approx(mean_absolute_error(truth, found), rel=1e-6)


def test_a_metric_that_counted_nothing_has_no_value():
    assert compute({"seen": Mean(1.0, 2.0), "unseen": Mean(0.0, 0.0)}) == {"seen": 0.5}


def test_metrics_add_as_trees_and_compute_python_floats():
    pair = jax.tree.map(jnp.add, Mean(jnp.ones(()), jnp.ones(())), Mean(jnp.ones(()), jnp.ones(())))
    assert isinstance(pair, Mean)
    assert [type(kind(4.0, 2.0).compute()) for kind in (Mean, Perplexity, RootMean)] == [float] * 3


@pytest.mark.parametrize(
    "shapes", [((32, 1), (32,)), ((32,), (32, 1)), ((32, 4), (32,)), ((1,), (32,))]
)
def test_a_mask_of_another_shape_is_refused_also_while_tracing(shapes):
    values, mask = map(jnp.ones, shapes)
    for mean in (Mean.of, jax.jit(Mean.of)):
        with pytest.raises(UserError, match="mask of the values' shape") as caught:
            mean(values, mask)
        assert all(str(shape) in str(caught.value) for shape in shapes)


def test_usual_names_have_the_directions_of_their_classes_and_of_the_experiments():
    assert (Mean.higher_is_better, RootMean.higher_is_better) == (None, HIGHER_IS_BETTER["rmse"])
    assert Perplexity.higher_is_better == HIGHER_IS_BETTER["perplexity"]
    lower = ["loss", "nll", "perplexity", "rmse", "mae", "wer", "cer", "fid", "bits_per_byte"]
    assert not any(HIGHER_IS_BETTER[name] for name in lower)
    expect = re.compile(r"^Expect: \w+ (\w+) .*(min|max)", re.MULTILINE)
    found = {path: expect.search(documentation(path)) for path in available().values()}
    promises = {path: each for path, each in found.items() if each}
    assert len(promises) > 10
    for path, (name, worst) in ((path, each.groups()) for path, each in promises.items()):
        assert (worst == "min") == load(path).experiment.task.higher_is_better(name), path
