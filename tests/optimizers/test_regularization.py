"""Decay, penalties, clipping and weight averages against formulas and scikit-learn's solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso, Ridge

from jdl.errors import UserError
from jdl.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Cosine,
    Lamb,
    Linear,
    Lion,
    Muon,
    RMSprop,
    averaged_params,
    decay_mask,
)
from tests.optimizer_steps import descend, network, run, values


@pytest.mark.parametrize("kind", [SGD, RMSprop, Adagrad, AdamW, Lion, Muon])
def test_decoupled_decay_follows_the_schedule_and_spares_biases_and_scales(kind):
    optimizer = kind(0.5, weight_decay=0.1, schedule=Cosine(warmup=0.5))
    params = network()
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = run(optimizer, params, [zeros] * 6)[0][-1]
    rate = optimizer.rate(6)
    shrunk = np.prod([1 - 0.1 * float(rate(t)) for t in range(6)])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = after
        for part in name.split("/"):
            found = found[part]
        if name.endswith(("kernel", "embedding")):
            np.testing.assert_allclose(found, shrunk * leaf, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found, leaf, err_msg=name)


def test_penalties_spare_biases_and_scales():
    params = network()
    zeros = jax.tree.map(jnp.zeros_like, params)
    (after,), _ = run(SGD(0.1, l1=0.3, l2=0.2), params, [zeros])
    mask = decay_mask(params)
    assert mask == {
        "Dense_0": {"kernel": True, "bias": False},
        "Conv_0": {"kernel": True},
        "Heads_0": {"scale": False, "bias": False},
        "Embed_0": {"embedding": True},
        "LayerNorm_0": {"scale": False},
        "temperature": False,
    }

    def expected(penalised, w):
        return w - 0.1 * (0.3 * np.sign(w) + 0.4 * w) if penalised else w

    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7),
        after,
        jax.tree.map(expected, mask, params),
    )


def test_the_l1_penalty_leaves_zero_weights_alone():
    params = {"kernel": jnp.asarray([[0.0, 1.0, -1.0]])}
    (after,), _ = run(SGD(0.1, l1=0.5), params, [{"kernel": jnp.zeros((1, 3))}])
    np.testing.assert_allclose(after["kernel"], [[0.0, 0.95, -0.95]], rtol=1e-6)


def test_l2_equals_decoupled_decay_for_sgd_and_differs_for_adam():
    params = {"kernel": jnp.asarray(values(0, 4, 3))}
    gradients = [{"kernel": jnp.asarray(values(seed, 4, 3))} for seed in range(1, 6)]

    def last(optimizer):
        return run(optimizer, params, gradients)[0][-1]["kernel"]

    schedule = Linear(warmup=0.4)
    decoupled = last(SGD(0.2, weight_decay=0.3, schedule=schedule))
    np.testing.assert_allclose(last(SGD(0.2, l2=0.15, schedule=schedule)), decoupled, rtol=1e-5)
    # Adam divides the penalty by the root mean square too: a first step is the sign of the sum.
    first = {"kernel": gradients[0]["kernel"] + 0.3 * params["kernel"]}
    (penalised,), _ = run(Adam(0.2, l2=0.15), params, gradients[:1])
    expected = params["kernel"] - 0.2 * jnp.sign(first["kernel"])
    np.testing.assert_allclose(penalised["kernel"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(last(Adam(0.2, l2=0.15)) - last(Adam(0.2, weight_decay=0.3))).max() > 0.01


def sparse_regression():
    inputs = values(3, 60, 12)
    weights = np.zeros(12, np.float32)
    weights[:4] = [2.0, -1.5, 1.0, 0.7]
    return inputs, inputs @ weights + 0.1 * values(4, 60)


def fit(optimizer, inputs, targets):
    def loss(params):  # scikit-learn's: half the mean square
        return jnp.mean((inputs @ params["kernel"][:, 0] - targets) ** 2) / 2

    return descend(optimizer, loss, {"kernel": jnp.full((12, 1), 0.3)}, 1500)["kernel"][:, 0]


def test_l1_reaches_the_lasso_solution_of_scikit_learn():
    inputs, targets = sparse_regression()
    lasso = Lasso(alpha=0.1, fit_intercept=False).fit(inputs.astype(float), targets).coef_
    assert np.sum(lasso == 0) >= 6
    # A subgradient step cannot rest at zero: with a falling rate it ends as close as the last step.
    found = fit(SGD(0.1, l1=0.1, schedule=Linear()), inputs, targets)
    np.testing.assert_allclose(found, lasso, atol=2e-3)
    plain = fit(SGD(0.1), inputs, targets)
    assert np.sum(np.abs(found) < 2e-3) >= np.sum(lasso == 0)
    assert np.sum(np.abs(plain) < 2e-3) <= 2


def test_l2_reaches_the_ridge_solution_of_scikit_learn():
    inputs, targets = sparse_regression()
    # Ridge minimises the sum of squares + alpha |w|^2; ours is that over twice the 60 examples.
    ridge = Ridge(alpha=2 * 60 * 0.2, fit_intercept=False).fit(inputs, targets).coef_
    np.testing.assert_allclose(fit(SGD(0.1, l2=0.2), inputs, targets), ridge, atol=1e-4)


def test_clipping_by_norm_is_global_and_only_when_too_long():
    params = {"a": jnp.zeros(2), "b": jnp.zeros((1, 2))}
    gradient = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[0.0, 4.0]])}
    (after,), _ = run(SGD(1.0, clip_norm=1.0), params, [gradient])
    np.testing.assert_allclose(after["a"], [-0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(after["b"], [[0.0, -0.8]], rtol=1e-6)
    (after,), _ = run(SGD(1.0, clip_norm=6.0), params, [gradient])
    np.testing.assert_array_equal(after["a"], [-3.0, 0.0])


def test_clipping_by_value_comes_after_penalties_and_before_the_norm():
    params = {"kernel": jnp.asarray([[1.0, 1.0, 0.0]])}
    gradient = {"kernel": jnp.asarray([[0.5, 9.0, -9.0]])}
    (after,), _ = run(SGD(1.0, clip_value=2.0, l2=0.5), params, [gradient])
    np.testing.assert_allclose(after["kernel"], [[1 - 1.5, 1 - 2.0, 2.0]], rtol=1e-6)
    (after,), _ = run(SGD(1.0, clip_value=2.0, clip_norm=1.0), params, [gradient])
    clipped = np.array([[0.5, 2.0, -2.0]])
    expected = params["kernel"] - clipped / np.linalg.norm(clipped)
    np.testing.assert_allclose(after["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_equals_the_debiased_recursion(decay):
    params = {"kernel": jnp.asarray(values(0, 3, 2)), "bias": jnp.asarray(values(1, 2))}
    gradients = [{"kernel": values(s, 3, 2), "bias": values(s + 20, 2)} for s in range(2, 12)]
    optimizer = SGD(0.3, ema_decay=decay)
    trajectory, state = run(optimizer, params, gradients)
    for name in params:
        mean = 0.0
        for now in trajectory:
            mean = decay * mean + (1 - decay) * np.asarray(now[name], np.float64)
        averaged = averaged_params(state, trajectory[-1])[name]
        np.testing.assert_allclose(averaged, mean / (1 - decay**10), rtol=2e-5, atol=1e-6)
    first, state = run(optimizer, params, gradients[:1])
    np.testing.assert_allclose(averaged_params(state, params)["bias"], first[0]["bias"], rtol=1e-6)


def test_averaging_changes_no_step_and_is_absent_unless_asked_for():
    params = {"kernel": jnp.asarray(values(0, 3, 2))}
    gradients = [{"kernel": jnp.asarray(values(seed, 3, 2))} for seed in range(4)]
    with_average, averaging = run(Adam(0.1, ema_decay=0.9), params, gradients)
    without, state = run(Adam(0.1), params, gradients)
    np.testing.assert_array_equal(with_average[-1]["kernel"], without[-1]["kernel"])
    assert averaged_params(state, params) is params
    assert np.abs(averaged_params(averaging, params)["kernel"] - without[-1]["kernel"]).max() > 0.01
    untouched = Adam(0.1, ema_decay=0.9).build(4).init(params)
    np.testing.assert_array_equal(averaged_params(untouched, params)["kernel"], params["kernel"])


def test_each_player_of_a_game_may_have_its_own_average():
    params = {"generator": {"kernel": jnp.ones((2, 2))}, "critic": {"kernel": jnp.ones((2, 2))}}
    tx = optax.partition(
        {"generator": SGD(1.0, ema_decay=0.5).build(2), "critic": SGD(1.0).build(2)},
        {"generator": "generator", "critic": "critic"},
    )
    state, gradient = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = tx.update(gradient, state, params, value=0.0)
        params = optax.apply_updates(params, updates)
    averaged = averaged_params(state, params)
    # The generator was at 0, then at -1, with weights 1/3 and 2/3.
    np.testing.assert_allclose(averaged["generator"]["kernel"], -2 / 3, rtol=1e-6)
    np.testing.assert_array_equal(averaged["critic"]["kernel"], -1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lamb(weight_decay=-1e-4), r"Lamb\.weight_decay must be"),
        (lambda: SGD(l1=-1.0), r"SGD\.l1 must be"),
        (lambda: SGD(l2=float("nan")), r"SGD\.l2 must be"),
        (lambda: SGD(clip_norm=0.0), r"SGD\.clip_norm must be finite and above 0, or None"),
        (lambda: SGD(clip_value=-1.0), r"SGD\.clip_value must be"),
        (
            lambda: SGD(ema_decay=1.0),
            r"SGD\.ema_decay must be above 0 and below 1, or None; it is 1",
        ),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
