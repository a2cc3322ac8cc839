"""Optimizers against hand-written formulas, schedules against closed forms, invariants of both."""

import dataclasses
from typing import Any

import flax.linen as nn
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
    Constant,
    Cosine,
    Exponential,
    Lamb,
    Linear,
    Lion,
    Muon,
    OneCycle,
    ReduceOnPlateau,
    RMSprop,
    Step,
    averaged_params,
    decay_mask,
)

OPTIMIZERS = (
    SGD(),
    SGD(momentum=0.9, nesterov=True),
    RMSprop(),
    RMSprop(momentum=0.9, centered=True),
    Adagrad(),
    Adam(),
    AdamW(),
    Lamb(),
    Lion(),
    Muon(),
)
SCHEDULES = (
    Constant(),
    Constant(warmup=0.5),
    Step(),
    Exponential(),
    Linear(),
    Cosine(warmup=0.1),
    OneCycle(),
    ReduceOnPlateau(),
)


def values(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network():
    """Parameters of every kind: kernels, biases and scales of one and two axes, an embedding."""
    return {
        "Dense_0": {"kernel": jnp.asarray(values(0, 6, 4)), "bias": jnp.asarray(values(1, 4))},
        "Conv_0": {"kernel": jnp.asarray(values(2, 3, 3, 2, 5))},
        "Heads_0": {"scale": jnp.asarray(values(3, 2, 3)), "bias": jnp.asarray(values(4, 2, 3))},
        "Embed_0": {"embedding": jnp.asarray(values(5, 7, 4))},
        "LayerNorm_0": {"scale": jnp.asarray(values(6, 4))},
        "temperature": jnp.asarray(values(7, 1)),
    }


def run(optimizer, params, gradients, losses=None):
    """All parameters after each of the given gradients, and the last optimizer state."""
    tx = optimizer.build(len(gradients))

    @jax.jit
    def step(params, state, gradient, value):
        updates, state = tx.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state, trajectory = tx.init(params), []
    for gradient, value in zip(gradients, losses or [0.0] * len(gradients), strict=True):
        params, state = step(params, state, gradient, jnp.float32(value))
        trajectory.append(params)
    return trajectory, state


def descend(optimizer, loss, params, steps):
    """The parameters after `steps` steps on the whole gradient of `loss`."""
    tx = optimizer.build(steps)

    def body(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    return jax.jit(lambda start: jax.lax.scan(body, start, length=steps)[0][0])(start)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.02, momentum=0.9, nesterov=True),
        RMSprop(0.05, schedule=Cosine()),
        RMSprop(0.01, momentum=0.9, centered=True, schedule=Cosine()),
        Adagrad(0.5),
        Adam(0.05, schedule=OneCycle()),
        AdamW(0.05, weight_decay=0.0, schedule=Exponential(end=1e-3)),
        Lamb(0.05, weight_decay=0.0, schedule=Cosine(warmup=0.1)),
        Lion(0.05, weight_decay=0.0, schedule=Linear()),
        Muon(0.1, weight_decay=0.0, schedule=Cosine()),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_every_optimizer_finds_the_least_squares_solution(optimizer):
    inputs = values(0, 32, 4)
    targets = inputs @ values(1, 4, 2) + 0.5 + 0.1 * values(2, 32, 2)
    with_ones = np.concatenate([inputs, np.ones((32, 1))], axis=1)
    solution = np.linalg.lstsq(with_ones, targets, rcond=None)[0]

    def loss(params):
        return jnp.mean((inputs @ params["kernel"] + params["bias"] - targets) ** 2)

    # Not from zero, where LAMB's layer-wise scale would be zero.
    start = {"kernel": jnp.full((4, 2), 0.1), "bias": jnp.zeros(2)}
    found = descend(optimizer, loss, start, 600)
    np.testing.assert_allclose(found["kernel"], solution[:4], atol=5e-3)
    np.testing.assert_allclose(found["bias"], solution[4], atol=5e-3)


def sgd(w, g, s, t):
    return w - 0.1 * g


def momentum(w, g, s, t):
    s["v"] = 0.9 * s.get("v", 0) + g
    return w - 0.1 * s["v"]


def nesterov(w, g, s, t):
    s["v"] = 0.9 * s.get("v", 0) + g
    return w - 0.1 * (g + 0.9 * s["v"])


def rmsprop(w, g, s, t):
    s["n"] = 0.9 * s.get("n", 0) + 0.1 * g**2
    return w - 0.1 * g / np.sqrt(s["n"] + 1e-8)


def centered(w, g, s, t):
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["n"] = 0.9 * s.get("n", 0) + 0.1 * g**2
    return w - 0.1 * g / np.sqrt(s["n"] - s["m"] ** 2 + 1e-8)


def adagrad(w, g, s, t):
    s["n"] = s.get("n", 0.1) + g**2
    return w - 0.1 * g / np.sqrt(s["n"] + 1e-7)


def adam_step(g, s, t, eps):
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["n"] = 0.999 * s.get("n", 0) + 0.001 * g**2
    return s["m"] / (1 - 0.9**t) / (np.sqrt(s["n"] / (1 - 0.999**t)) + eps)


def adam(w, g, s, t):
    return w - 0.1 * adam_step(g, s, t, 1e-8)


def nadam(w, g, s, t):
    adam_step(g, s, t, 1e-8)
    ahead = 0.9 * s["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return w - 0.1 * ahead / (np.sqrt(s["n"] / (1 - 0.999**t)) + 1e-8)


def nadamw(w, g, s, t):
    return nadam(w, g, s, t) - 0.1 * 0.02 * w


def adamw(w, g, s, t):
    return w - 0.1 * (adam_step(g, s, t, 1e-8) + 0.02 * w)


def sgdw(w, g, s, t):
    s["v"] = 0.9 * s.get("v", 0) + g
    return w - 0.1 * (s["v"] + 0.02 * w)


def lamb(w, g, s, t):
    step = adam_step(g, s, t, 1e-6) + 0.02 * w
    return w - 0.1 * np.linalg.norm(w) / np.linalg.norm(step) * step


def lion(w, g, s, t):
    direction = np.sign(0.9 * s.get("m", 0) + 0.1 * g)
    s["m"] = 0.99 * s.get("m", 0) + 0.01 * g
    return w - 0.1 * (direction + 0.02 * w)


@pytest.mark.parametrize(
    ("optimizer", "formula"),
    [
        (SGD(0.1), sgd),
        (SGD(0.1, momentum=0.9), momentum),
        (SGD(0.1, momentum=0.9, nesterov=True), nesterov),
        (SGD(0.1, momentum=0.9, weight_decay=0.02), sgdw),
        (RMSprop(0.1), rmsprop),
        (RMSprop(0.1, centered=True), centered),
        (Adagrad(0.1), adagrad),
        (Adam(0.1), adam),
        (Adam(0.1, nesterov=True), nadam),
        (AdamW(0.1, weight_decay=0.02), adamw),
        (AdamW(0.1, weight_decay=0.02, nesterov=True), nadamw),
        (Lamb(0.1, weight_decay=0.02), lamb),
        (Lion(0.1, weight_decay=0.02), lion),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_steps_follow_the_published_formula(optimizer, formula):
    gradients = [values(seed, 3, 2) for seed in range(4)]
    expected, state = values(9, 3, 2).astype(np.float64), {}
    trajectory, _ = run(
        optimizer,
        {"kernel": jnp.asarray(expected, jnp.float32)},
        [{"kernel": g} for g in gradients],
    )
    for t, (gradient, params) in enumerate(zip(gradients, trajectory, strict=True), start=1):
        expected = formula(expected, gradient.astype(np.float64), state, t)
        np.testing.assert_allclose(params["kernel"], expected, rtol=2e-5, atol=2e-6)


def test_lamb_scales_only_what_it_decays():
    params = {"bias": jnp.full(3, 5.0), "kernel": jnp.full((2, 2), 5.0)}
    gradient = {"bias": jnp.full(3, 2.0), "kernel": jnp.full((2, 2), 2.0)}
    (after,), _ = run(Lamb(0.1, weight_decay=0.0), params, [gradient])
    np.testing.assert_allclose(after["bias"], 5 - 0.1, rtol=1e-5)  # Adam's first step is the sign
    np.testing.assert_allclose(after["kernel"], 5 - 0.1 * 5, rtol=1e-5)  # times |w| / |step|


def orthogonalised(matrix, iterations=5):
    """Newton-Schulz by its action on the singular values (Jordan, 2024)."""
    left, singular, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    singular = singular / np.linalg.norm(singular)
    for _ in range(iterations):
        singular = 3.4445 * singular - 4.775 * singular**3 + 2.0315 * singular**5
    return left * singular @ right


class Attending(nn.Module):
    """Real Flax layers, so that the names and axes are those that Muon will meet."""

    @nn.compact
    def __call__(self, tokens, image):
        x = nn.Embed(7, 8)(tokens)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        y = nn.Conv(5, (3, 3))(image).mean((1, 2))
        y = nn.Dense(6)(y)
        return nn.Dense(3, name="head")(x), nn.Dense(3)(y)


def muon_case():
    arrays = jnp.zeros((1, 4), int), jnp.zeros((1, 5, 5, 2))
    params = jax.eval_shape(Attending().init, jax.random.key(0), *arrays)["params"]
    leaves, structure = jax.tree.flatten(params)
    gradients = [jnp.asarray(values(seed, *leaf.shape)) for seed, leaf in enumerate(leaves)]
    gradient = jax.tree.unflatten(structure, gradients)
    tx = Muon(0.01, weight_decay=0.0, adam_names=("head", "Dense_1")).build(10)
    # Without decay a step does not depend on the parameters: the gradients stand in for them.
    updates = jax.jit(lambda g: tx.update(g, tx.init(g), g, value=0.0)[0])(gradient)
    named = jax.tree_util.tree_leaves_with_path
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named(params)]
    return {
        name: (np.asarray(g), np.asarray(u))
        for name, g, u in zip(names, gradients, jax.tree.leaves(updates), strict=True)
    }


def test_muon_orthogonalises_hidden_kernels_and_leaves_the_rest_to_adam():
    case = muon_case()
    attention = "MultiHeadDotProductAttention_0"
    matrices = {
        "Conv_0/kernel": (18, 5),
        f"{attention}/query/kernel": (8, 8),
        f"{attention}/key/kernel": (8, 8),
        f"{attention}/value/kernel": (8, 8),
        f"{attention}/out/kernel": (8, 8),
        "Dense_0/kernel": (5, 6),
    }
    assert set(matrices) < set(case)
    for name, shape in matrices.items():
        gradient, update = (array.reshape(shape) for array in case.pop(name))
        expected = -0.01 * 0.2 * np.sqrt(max(shape)) * orthogonalised(gradient)
        np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert {"Embed_0/embedding", "head/kernel", "Dense_1/kernel", "LayerNorm_0/scale"} < set(case)
    for name, (gradient, update) in case.items():
        expected = -0.01 * np.sign(gradient)
        np.testing.assert_allclose(update, expected, rtol=1e-3, err_msg=name)


def test_muon_follows_its_formula():
    gradients = [values(1, 5, 3), values(2, 5, 3)]
    start = values(0, 5, 3)
    mean = 0.9 * 0.1 * gradients[0] + 0.1 * gradients[1]
    ahead = 0.9 * mean / (1 - 0.9**3) + 0.1 * gradients[1] / (1 - 0.9**2)
    for optimizer, momentum, scale in (
        (Muon(0.1, beta=0.9, nesterov=False), mean, 0.2 * np.sqrt(5)),
        (Muon(0.1, beta=0.9), ahead, 0.2 * np.sqrt(5)),
        (Muon(0.1, beta=0.9, ns_steps=2, rms=None), ahead, np.sqrt(1.0)),
    ):
        params = {"kernel": jnp.asarray(start)}
        first, second = run(optimizer, params, [{"kernel": g} for g in gradients])[0]
        step = scale * orthogonalised(momentum, optimizer.ns_steps) + 0.1 * first["kernel"]
        expected = first["kernel"] - 0.1 * step
        np.testing.assert_allclose(second["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_muon_without_any_matrix_is_adam():
    params, gradient = {"bias": jnp.ones(3)}, {"bias": jnp.asarray([1.0, -2.0, 3.0])}
    (after,), _ = run(Muon(0.1), params, [gradient])
    np.testing.assert_allclose(after["bias"], [0.9, 1.1, 0.9], rtol=1e-5)


def cosine(share):
    return (1 + np.cos(np.pi * share)) / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), lambda t: 1.0),
        (Constant(warmup=0.25), lambda t: min(t / 10, 1)),
        (Step(), lambda t: 0.1 ** ((t >= 20) + (t >= 30))),
        (Step(at=(0.3, 0.5, 0.9), factor=0.5, warmup=0.25),
         lambda t: t / 10 if t < 10 else 0.5 ** ((t >= 12) + (t >= 20) + (t >= 36))),
        (Exponential(end=0.01), lambda t: 0.01 ** (t / 40)),
        (Exponential(end=0.5, warmup=0.25), lambda t: t / 10 if t < 10 else 0.5 ** ((t - 10) / 30)),
        (Linear(), lambda t: 1 - t / 40),
        (Linear(end=0.2, warmup=0.25), lambda t: t / 10 if t < 10 else 1 - 0.8 * (t - 10) / 30),
        (Cosine(), lambda t: cosine(t / 40)),
        (Cosine(end=0.1, warmup=0.25),
         lambda t: t / 10 if t < 10 else 0.1 + 0.9 * cosine((t - 10) / 30)),
        (OneCycle(), lambda t: 0.04 + 0.96 * (1 - cosine(t / 12)) if t < 12
         else 4e-6 + (1 - 4e-6) * cosine((t - 12) / 28)),
        (OneCycle(warmup=0.5, div_factor=10.0, final_div_factor=2.0),
         lambda t: 0.1 + 0.9 * (1 - cosine(t / 20)) if t < 20
         else 0.05 + 0.95 * cosine((t - 20) / 20)),
        (ReduceOnPlateau(warmup=0.25), lambda t: min(t / 10, 1)),
    ],
)  # fmt: skip
def test_schedules_equal_their_closed_forms(schedule, expected):
    rate = SGD(0.3, schedule=schedule).rate(40)
    rates = jax.jit(jax.vmap(lambda t: rate(t) + 0.0 * t))(jnp.arange(41))
    np.testing.assert_allclose(rates, [0.3 * expected(t) for t in range(41)], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_are_rates_in_the_shortest_runs(steps):
    rates = [SGD(1.0, schedule=schedule).rate(steps) for schedule in SCHEDULES]
    found = jax.jit(lambda: jnp.asarray([[rate(t) for t in range(steps)] for rate in rates]))()
    for schedule, row in zip(SCHEDULES, np.asarray(found), strict=True):
        assert np.isfinite(row).all(), schedule
        assert row.min() >= 0, schedule
        assert 0 < row.max() <= 1, schedule


def test_drops_that_fall_on_one_step_are_all_taken():
    rate = SGD(1.0, schedule=Step(at=(0.5, 0.6))).rate(2)
    np.testing.assert_allclose(np.array([rate(0), rate(1)]), [1.0, 0.01], rtol=1e-6)


def test_the_rate_counts_optimizer_steps_from_zero():
    schedule = Linear(warmup=0.2)
    gradients = [{"kernel": jnp.ones((1, 1))}] * 10
    trajectory, _ = run(SGD(1.0, schedule=schedule), {"kernel": jnp.zeros((1, 1))}, gradients)
    steps = -np.diff([0.0, *(float(params["kernel"][0, 0]) for params in trajectory)])
    np.testing.assert_allclose(steps, [0, 0.5, *(1 - np.arange(8) / 8)], atol=1e-6)


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
    optimizer = SGD(0.3, average=decay)
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
    with_average, averaging = run(Adam(0.1, average=0.9), params, gradients)
    without, state = run(Adam(0.1), params, gradients)
    np.testing.assert_array_equal(with_average[-1]["kernel"], without[-1]["kernel"])
    assert averaged_params(state, params) is params
    assert np.abs(averaged_params(averaging, params)["kernel"] - without[-1]["kernel"]).max() > 0.01
    untouched = Adam(0.1, average=0.9).build(4).init(params)
    np.testing.assert_array_equal(averaged_params(untouched, params)["kernel"], params["kernel"])


def test_each_player_of_a_game_may_have_its_own_average():
    params = {"generator": {"kernel": jnp.ones((2, 2))}, "critic": {"kernel": jnp.ones((2, 2))}}
    tx = optax.partition(
        {"generator": SGD(1.0, average=0.5).build(2), "critic": SGD(1.0).build(2)},
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


def scales(schedule, losses):
    """The rate that each step took, under a peak of 1."""
    params = {"kernel": jnp.zeros((1, 1))}
    gradients = [{"kernel": jnp.ones((1, 1))}] * len(losses)
    trajectory, _ = run(SGD(1.0, schedule=schedule), params, gradients, losses)
    return -np.diff([0.0, *(float(params["kernel"][0, 0]) for params in trajectory)])


def test_the_rate_falls_after_patience_runs_out():
    plateau = ReduceOnPlateau(factor=0.5, patience=3, accumulation_size=2)
    # The first average of two losses is the best so far; three more without improvement follow.
    expected = [1.0] * 7 + [0.5] * 6 + [0.25] * 2
    np.testing.assert_allclose(scales(plateau, [1.0] * 15), expected, rtol=1e-5)
    np.testing.assert_allclose(scales(plateau, [0.9**t for t in range(15)]), 1.0, rtol=1e-5)
    # Averages are compared: losses that alternate about a falling mean are no plateau.
    alternating = [0.9**t + (0.3 if t % 2 else -0.3) for t in range(15)]
    np.testing.assert_allclose(scales(plateau, alternating), 1.0, rtol=1e-5)


def test_cooldown_delays_min_scale_bounds_and_rtol_hastens_the_fall():
    plateau = ReduceOnPlateau(factor=0.5, patience=2, accumulation_size=1, cooldown=3)
    expected = [1.0] * 2 + [0.5] * 5 + [0.25] * 5
    np.testing.assert_allclose(scales(plateau, [1.0] * 12), expected, rtol=1e-5)
    slowly = [0.99**t for t in range(12)]
    np.testing.assert_allclose(scales(plateau, slowly), 1.0, rtol=1e-5)
    demanding = dataclasses.replace(plateau, rtol=0.05)
    np.testing.assert_allclose(scales(demanding, slowly)[:3], [1.0, 1.0, 0.5], rtol=1e-5)
    bounded = dataclasses.replace(plateau, cooldown=0, min_scale=0.4)
    expected = [1.0] * 2 + [0.5] * 2 + [0.4] * 4
    np.testing.assert_allclose(scales(bounded, [1.0] * 8), expected, rtol=1e-5)


EVERYTHING: dict[str, Any] = {
    "clip_norm": 1.0,
    "clip_value": 0.5,
    "weight_decay": 0.1,
    "l1": 0.1,
    "l2": 0.1,
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_the_state_holds_arrays_of_one_unchanging_type(optimizer, schedule):
    params = {
        "Dense_0": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)},
        "bare": jnp.ones((2, 2)),
    }
    tx = dataclasses.replace(optimizer, schedule=schedule, average=0.9, **EVERYTHING).build(10)
    state = tx.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))

    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    def step(gradient, state, params, value, skip):
        def take(_):
            updates, new = tx.update(gradient, state, params, value=value)
            return optax.apply_updates(params, updates), new

        return jax.lax.cond(skip, lambda _: (params, state), take, None)

    arguments = params, state, params, jnp.float32(1.0), jnp.bool_(False)
    new_params, new_state = jax.eval_shape(step, *arguments)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert types(new_state) == types(jax.eval_shape(lambda: tx.init(params)))
    assert types(new_params) == types(jax.eval_shape(lambda: params))


@pytest.mark.parametrize("optimizer", [Adam(average=0.9), Muon(schedule=ReduceOnPlateau())])
def test_a_donating_step_compiles_once_and_a_skipped_one_changes_nothing(optimizer):
    tx = optimizer.build(10)

    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    traces = []

    def step(carry, skip):
        traces.append(skip)
        params, state = carry

        def take(carry):
            updates, new = tx.update(params, state, params, value=jnp.float32(1.0))
            return optax.apply_updates(params, updates), new

        return jax.lax.cond(skip, lambda carry: carry, take, carry)

    compiled = jax.jit(step, donate_argnums=0)
    carry = compiled((params, tx.init(params)), False)
    before = jax.tree.map(np.array, carry)
    carry = compiled(carry, True)
    jax.tree.map(np.testing.assert_array_equal, carry, before)
    carry = compiled(carry, False)
    assert np.abs(carry[0]["kernel"] - before[0]["kernel"]).max() > 0
    assert len(traces) == 1


def test_orbax_restores_the_state_as_it_was(tmp_path):
    import orbax.checkpoint as ocp

    params = network()
    tx = Muon(average=0.9, schedule=ReduceOnPlateau(), **EVERYTHING).build(4)
    state = jax.tree.map(lambda leaf: leaf + 1, tx.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def with_a_name_for_a_schedule():
    optimizer = SGD()  # set behind the type checks that the tests run under
    object.__setattr__(optimizer, "schedule", "cosine")
    optimizer.__post_init__()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-0.1), r"SGD\.learning_rate must be finite and at least 0; it is -0\.1"),
        (lambda: Adam(float("nan")), r"Adam\.learning_rate must be .*; it is nan"),
        (lambda: Adam(float("inf")), r"Adam\.learning_rate must be .*; it is inf"),
        (lambda: SGD(0.1, momentum=1.0), r"SGD\.momentum must be at least 0 and below 1; it is 1"),
        (lambda: SGD(0.1, nesterov=True), r"SGD\.nesterov must be False without momentum"),
        (lambda: RMSprop(nesterov=True), r"RMSprop\.nesterov must be False without momentum"),
        (lambda: RMSprop(decay=-0.1), r"RMSprop\.decay must be"),
        (lambda: Adagrad(initial_accumulator=-1), r"Adagrad\.initial_accumulator must be"),
        (lambda: Adam(b1=1.0), r"Adam\.b1 must be"),
        (lambda: AdamW(b2=1.5), r"AdamW\.b2 must be"),
        (lambda: Adam(eps=0.0), r"Adam\.eps must be finite and above 0"),
        (lambda: Lamb(weight_decay=-1e-4), r"Lamb\.weight_decay must be"),
        (lambda: Lion(b2=-0.5), r"Lion\.b2 must be"),
        (lambda: Muon(beta=2.0), r"Muon\.beta must be"),
        (lambda: Muon(ns_steps=0), r"Muon\.ns_steps must be at least 1; it is 0"),
        (lambda: Muon(rms=0.0), r"Muon\.rms must be"),
        (lambda: SGD(l1=-1.0), r"SGD\.l1 must be"),
        (lambda: SGD(l2=float("nan")), r"SGD\.l2 must be"),
        (lambda: SGD(clip_norm=0.0), r"SGD\.clip_norm must be finite and above 0, or None"),
        (lambda: SGD(clip_value=-1.0), r"SGD\.clip_value must be"),
        (lambda: SGD(average=1.0), r"SGD\.average must be above 0 and below 1, or None; it is 1"),
        (
            with_a_name_for_a_schedule,
            r"SGD\.schedule must be a schedule such as .*'cosine'",
        ),
        (lambda: Cosine(warmup=1.0), r"Cosine\.warmup must be a fraction of the run.*; it is 1\.0"),
        (lambda: OneCycle(warmup=-0.1), r"OneCycle\.warmup must be"),
        (lambda: OneCycle(div_factor=0.5), r"OneCycle\.div_factor must be"),
        (lambda: OneCycle(final_div_factor=0.0), r"OneCycle\.final_div_factor must be"),
        (lambda: Cosine(end=-0.1), r"Cosine\.end must be"),
        (lambda: Linear(end=1.1), r"Linear\.end must be"),
        (lambda: Exponential(end=0.0), r"Exponential\.end must be"),
        (lambda: Step(at=(0.5, 0.4)), r"Step\.at must be increasing fractions.*; it is \(0\.5, 0"),
        (lambda: Step(at=(0.2,), warmup=0.3), r"Step\.at must be .*above the warm-up"),
        (lambda: Step(at=(30.0, 60.0)), r"Step\.at must be .*below 1"),
        (lambda: Step(factor=0.0), r"Step\.factor must be"),
        (lambda: ReduceOnPlateau(factor=1.0), r"ReduceOnPlateau\.factor must be"),
        (lambda: ReduceOnPlateau(patience=0), r"ReduceOnPlateau\.patience must be"),
        (lambda: ReduceOnPlateau(cooldown=-1), r"ReduceOnPlateau\.cooldown must be"),
        (lambda: ReduceOnPlateau(accumulation_size=0), r"\.accumulation_size must be"),
        (lambda: ReduceOnPlateau(min_scale=2.0), r"ReduceOnPlateau\.min_scale must be"),
        (lambda: ReduceOnPlateau(rtol=0.0), r"ReduceOnPlateau\.rtol must be"),
        (lambda: Adam().build(0), r"at least one optimizer step; the run has 0"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
