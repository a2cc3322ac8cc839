"""Optimizers against hand-written formulas; their state is arrays."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl.errors import UserError
from jdl.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Cosine,
    Exponential,
    Lamb,
    Linear,
    Lion,
    Muon,
    OneCycle,
    ReduceOnPlateau,
    RMSprop,
)
from tests.optimizer_steps import SCHEDULES, descend, network, run, values

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
EVERYTHING: dict[str, Any] = {
    "clip_norm": 1.0,
    "clip_value": 0.5,
    "weight_decay": 0.1,
    "l1": 0.1,
    "l2": 0.1,
}


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


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_the_state_holds_arrays_of_one_unchanging_type(optimizer, schedule):
    params = {
        "Dense_0": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)},
        "bare": jnp.ones((2, 2)),
    }
    tx = dataclasses.replace(optimizer, schedule=schedule, ema_decay=0.9, **EVERYTHING).build(10)
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


@pytest.mark.parametrize("optimizer", [Adam(ema_decay=0.9), Muon(schedule=ReduceOnPlateau())])
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
    tx = Muon(ema_decay=0.9, schedule=ReduceOnPlateau(), **EVERYTHING).build(4)
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
        (lambda: Lion(b2=-0.5), r"Lion\.b2 must be"),
        (lambda: Muon(beta=2.0), r"Muon\.beta must be"),
        (lambda: Muon(ns_steps=0), r"Muon\.ns_steps must be at least 1; it is 0"),
        (lambda: Muon(rms=0.0), r"Muon\.rms must be"),
        (with_a_name_for_a_schedule, r"SGD\.schedule must be a schedule such as .*'cosine'"),
        (lambda: Adam().build(0), r"at least one optimizer step; the run has 0"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
