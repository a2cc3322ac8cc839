"""Models against NumPy and SciPy, sizes against closed forms; each overfits one batch."""

import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from jdl import step as step_lib
from jdl.layers import BatchNorm
from jdl.metrics import compute
from jdl.models import CNN, MLP
from jdl.optimizers import Adam
from jdl.step import Program
from jdl.tasks import Classification


def values(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_like(shapes, seed=0):
    """Normal numbers, so that biases count too; made without compiling anything."""
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [values(seed + i, *x.shape) for i, x in enumerate(leaves)])


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def apply(model: Any, variables, x, *args, **named) -> Any:
    return model.apply(variables, jnp.asarray(x), *args, **named)


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def gelu(x):
    """The tanh form of Hendrycks and Gimpel (2016), which is Flax's."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [(nn.relu, lambda x: np.maximum(x, 0)), (nn.tanh, np.tanh), (nn.gelu, gelu)],
)
def test_mlp_is_its_formula(activation, formula):
    model, x = MLP((6, 5), 3, activation), values(0, 4, 2, 3, 1)
    params = random_like(shapes(model, x)["params"])
    first, second, last = params["Dense_0"], params["Dense_1"], params["logits"]
    hidden = formula(affine(second, formula(affine(first, x.reshape(4, 6)))))
    found = apply(model, {"params": params}, x)
    np.testing.assert_allclose(found, affine(last, hidden), rtol=1e-5, atol=1e-5)


def test_a_cnn_of_means_is_its_formula_for_images_of_any_size():
    model = CNN((3,), (), 4, pooling="mean", global_pooling=True)
    small, wide = values(0, 2, 6, 8, 2), values(1, 2, 12, 4, 2)
    params = random_like(shapes(model, small)["params"])
    for x in (small, wide):
        maps = nn.Conv(3, (3, 3)).apply({"params": params["Conv_0"]}, x)
        height, width = x.shape[1:3]
        cells = np.maximum(maps, 0).reshape(2, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        expected = affine(params["logits"], cells.mean((1, 2)))
        found = apply(model, {"params": params}, x)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_cnn_is_scipys_correlation_and_a_pool(padding):
    model = CNN(channels=(3,), dense=(5,), num_classes=4, padding=padding)
    x = values(0, 2, 7, 6, 2)
    params = random_like(shapes(model, x)["params"])
    kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"]["bias"]
    maps = np.stack(
        [
            [
                sum(correlate(image[..., i], kernel[..., i, o], padding.lower()) for i in range(2))
                for o in range(3)
            ]
            for image in x
        ]
    )
    maps = np.maximum(np.moveaxis(maps, 1, -1) + bias, 0)
    height, width = maps.shape[1] // 2, maps.shape[2] // 2
    assert (height, width) == ((3, 3) if padding == "SAME" else (2, 2))
    maps = maps[:, : 2 * height, : 2 * width].reshape(2, height, 2, width, 2, 3).max((2, 4))
    hidden = np.maximum(affine(params["Dense_0"], maps.reshape(2, -1)), 0)
    found = apply(model, {"params": params}, x)
    np.testing.assert_allclose(found, affine(params["logits"], hidden), rtol=1e-4, atol=1e-4)


def test_parameter_counts_are_the_closed_forms():
    digit = jnp.zeros((1, 28, 28, 1))
    assert size(shapes(MLP((128,), 10), digit)) == 784 * 128 + 128 + 128 * 10 + 10 == 101_770
    assert size(shapes(MLP((), 10), digit)) == 7_850
    assert size(shapes(MLP((5, 7, 3), 2, dropout_rate=0.5), jnp.zeros((1, 4)))) == (
        5 * 5 + 6 * 7 + 8 * 3 + 4 * 2
    )
    convolutions = 9 * 1 * 32 + 9 * 32 * 64
    dense = 7 * 7 * 64 * 128 + 128 + 128 * 10 + 10
    assert size(shapes(CNN(), digit)["params"]) == convolutions + 32 + 64 + dense
    normed = shapes(CNN(batch_norm=True), digit)
    assert size(normed["params"]) == convolutions + 2 * (32 + 64) + dense
    assert size(normed["batch_stats"]) == 2 * (32 + 64)
    valid = shapes(CNN(padding="VALID", dense=()), digit)["params"]  # 28, 26, 13, 11, 5
    assert size(valid) == convolutions + 32 + 64 + 5 * 5 * 64 * 10 + 10


@pytest.mark.parametrize(
    "model",
    [
        MLP((32,), 3),
        CNN(channels=(8,), dense=(16,), num_classes=3, batch_norm=True),
    ],
    ids=["mlp", "cnn"],
)
def test_each_model_learns_one_batch_by_heart(model):
    program = Program(model, Classification(), Adam(0.02).build(100))
    label = np.random.default_rng(1).integers(0, 3, 16, np.int32)
    batch = {"image": values(0, 16, 6, 6, 1), "label": label, "mask": np.ones(16, bool)}
    batch = jax.tree.map(jnp.asarray, batch)
    state = jax.jit(functools.partial(step_lib.init, program))(jax.random.key(0), batch)
    evaluate = jax.jit(functools.partial(step_lib.evaluate, program))
    assert compute(evaluate(state, batch))["loss"] > 0.8
    update = jax.jit(functools.partial(step_lib.update, program))
    for _ in range(80):
        state, _ = update(state, batch)
    scores = compute(evaluate(state, batch))
    assert scores["accuracy"] == 1
    assert scores["loss"] < 0.05


@pytest.mark.parametrize(
    "model",
    [
        *(MLP((16,), 3, activation) for activation in (nn.relu, nn.gelu, nn.tanh, nn.silu)),
        CNN(channels=(4,), dense=(8,), num_classes=3),
    ],
    ids=["relu", "gelu", "tanh", "silu", "cnn"],
)
def test_gradients_are_finite_differences(model):
    x = values(0, 5, 4, 4, 1)
    params = random_like(shapes(model, x)["params"])
    direction = random_like(params, seed=50)
    weights = values(99, 5, 3)

    def score(params):
        return (apply(model, {"params": params}, x) * weights).sum()

    def moved(step):
        ahead = jax.tree.map(lambda p, d: p + step * d, params, direction)
        output = np.asarray(apply(model, {"params": ahead}, x), np.float64)
        return (output * weights).sum()

    gradient = jax.grad(score)(params)
    slope = sum(
        np.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    difference = (moved(1e-3) - moved(-1e-3)) / 2e-3
    assert abs(slope) > 1
    assert slope == pytest.approx(difference, rel=5e-3)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_dropout_and_batch_statistics_rest_in_evaluation(batch_norm):
    model = CNN(channels=(4,), dense=(32,), num_classes=3, batch_norm=batch_norm, dropout_rate=0.5)
    x = values(0, 5, 4, 4, 1)
    variables = random_like(shapes(model, x))
    variables = {name: jax.tree.map(np.abs, tree) for name, tree in variables.items()}
    certain = apply(model.clone(dropout_rate=0.0), variables, x)
    np.testing.assert_array_equal(apply(model, variables, x), certain)
    np.testing.assert_array_equal(apply(model, variables, x, train=False), certain)
    rows = apply(model, variables, x[:2], train=False)
    np.testing.assert_allclose(rows, certain[:2], rtol=1e-5)  # a row knows nothing of the others
    dropped = [
        apply(model, variables, x, train=True, rngs={"dropout": jax.random.key(seed)},
                    mutable=["batch_stats"])[0]
        for seed in range(2)
    ]  # fmt: skip
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1


def test_dropout_drops_its_share_and_keeps_the_mean():
    model = MLP((4000,), 1, jnp.ones_like, dropout_rate=0.25, kernel_init=nn.initializers.ones)
    x = np.ones((3, 1), np.float32)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, "f4"), shapes(model, x))
    variables["params"]["logits"]["bias"] = np.zeros(1, "f4")
    np.testing.assert_array_equal(apply(model, variables, x), np.full((3, 1), 4000))
    sums = apply(model, variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(sums) * 0.75  # each unit that is kept counts 1 / 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=0.05)
    assert len(np.unique(kept)) == 3, "each row has a mask of its own"
    assert np.abs(kept - 3000).max() < 6 * math.sqrt(4000 * 0.25 * 0.75)


def test_models_take_integers_and_any_shape_and_give_float32():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 9, 5, 1)).astype(np.uint8)
    for model in (MLP((4,), 2), CNN(channels=(2, 3), dense=(), num_classes=2)):
        variables = random_like(shapes(model, pixels))
        output = apply(model, variables, pixels)
        chex.assert_shape(output, (3, 2))
        assert output.dtype == jnp.float32
        np.testing.assert_allclose(output, apply(model, variables, np.float32(pixels)), rtol=1e-6)


def test_batch_norm_is_ioffe_and_szegedys_formula():
    layer, x = BatchNorm(momentum=0.8, epsilon=0.01), values(0, 6, 3, 2, 4) * 2 + 1
    params = {"BatchNorm_0": {"scale": values(1, 4), "bias": values(2, 4)}}
    scale, bias = params["BatchNorm_0"].values()
    before = {"BatchNorm_0": {"mean": values(3, 4), "var": values(4, 4) ** 2}}
    variables = {"params": params, "batch_stats": before}
    old_mean, old_variance = before["BatchNorm_0"].values()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    found, changed = apply(layer, variables, x, True, mutable=["batch_stats"])
    expected = (x - mean) / np.sqrt(variance + 0.01) * scale + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    statistics = changed["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.8 * old_mean + 0.2 * mean, rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], 0.8 * old_variance + 0.2 * variance, rtol=1e-4)
    expected = (x - old_mean) / np.sqrt(old_variance + 0.01) * scale + bias
    np.testing.assert_allclose(apply(layer, variables, x, False), expected, rtol=1e-4, atol=1e-4)
