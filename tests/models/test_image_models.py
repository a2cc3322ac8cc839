"""Image networks from papers: parameter counts and outputs match."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import models
from jdl.layers import Residual
from jdl.models.alexnet import local_response_norm


def size(model, *shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(functools.partial(model().init), jax.random.key(0), x)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "side", "parameters"),
    [
        ("AlexNet", 227, 60_965_224),
        ("VGG11", 224, 132_863_336),
        ("VGG13", 224, 133_047_848),
        ("VGG16", 224, 138_357_544),
        ("VGG19", 224, 143_667_240),
        ("ResNet18", 224, 11_689_512),
        ("ResNet34", 224, 21_797_672),
        ("ResNet50", 224, 25_557_032),
        ("ResNet101", 224, 44_549_160),
        ("ResNet152", 224, 60_192_808),
    ],
)
def test_parameters_are_as_many_as_published(name, side, parameters):
    assert size(getattr(models, name), side, side, 3) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ResNet20", 0.27),
        ("ResNet32", 0.46),
        ("ResNet44", 0.66),
        ("ResNet56", 0.85),
        ("ResNet110", 1.7),
    ],
)
def test_small_resnets_are_as_large_as_in_table_6_of_the_paper(name, millions):
    found = size(getattr(models, name), 32, 32, 3) / 1e6
    assert found == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


def test_a_resnet_shrinks_its_images_where_the_paper_does():
    model = models.ResNet18(num_classes=7)
    x = jnp.zeros((1, 64, 64, 3))
    _, seen = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), x, capture_intermediates=True)
    )
    shapes = {
        name: tree["__call__"][0].shape
        for name, tree in seen["intermediates"].items()
        if name.endswith(("stem", "block1"))
    }
    assert shapes == {
        "stem": (1, 32, 32, 64),
        "stage0_block1": (1, 16, 16, 64),
        "stage1_block1": (1, 8, 8, 128),
        "stage2_block1": (1, 4, 4, 256),
        "stage3_block1": (1, 2, 2, 512),
    }


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("strides", [1, 2])
def test_a_fresh_block_is_relu_of_its_shortcut(shortcut, bottleneck, strides):
    rng = np.random.default_rng(0)
    outputs = 16 if bottleneck else 4
    block = Residual(4, strides, bottleneck, shortcut)
    x = jnp.asarray(rng.normal(size=(2, 6, 8, outputs if strides == 1 else 4)), jnp.float32)
    variables = block.init(jax.random.key(0), x)
    found = block.apply(variables, x)
    assert found.shape == (2, 6 // strides, 8 // strides, outputs)
    if strides == 1:
        np.testing.assert_allclose(found, np.maximum(x, 0), rtol=1e-6)
    elif shortcut == "padding":
        kept = np.maximum(x[:, ::2, ::2], 0)
        np.testing.assert_allclose(found[..., :4], kept, rtol=1e-6)
        assert not found[..., 4:].any()
    else:
        assert (found > 0).any()
        assert "project" in variables["params"]


def test_local_response_norm_is_the_papers_sum():
    x = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32) * 20
    expected = np.empty_like(x)
    for i in range(9):
        near = x[..., max(0, i - 2) : min(9, i + 3)]
        expected[..., i] = x[..., i] / (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x)), expected, rtol=1e-5)


def test_a_resnet_equals_torchs_with_its_weights():
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    rng = np.random.default_rng(0)
    model = models.ResNet(stage_sizes=(1, 1), num_filters=4, num_classes=3)
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(shapes)
    variables = jax.tree.unflatten(
        tree, [np.abs(rng.normal(0.3, 0.2, leaf.shape)).astype(np.float32) for leaf in leaves]
    )

    def layer(x, *path, strides=1):
        params, stats = variables["params"], variables["batch_stats"]
        for name in path:
            params, stats = params[name], stats[name]
        kernel = params["Conv_0"]["kernel"]
        norm, seen = (tree["BatchNorm_0"]["BatchNorm_0"] for tree in (params, stats))
        weight = torch.tensor(kernel.transpose(3, 2, 0, 1))
        x = functional.conv2d(x, weight, stride=strides, padding=kernel.shape[0] // 2)
        given = (torch.tensor(v) for v in (seen["mean"], seen["var"], norm["scale"], norm["bias"]))
        return functional.batch_norm(x, *given, eps=1e-5)

    def block(x, name, strides):
        y = functional.relu(layer(x, name, "conv0"))
        y = functional.relu(layer(y, name, "conv1", strides=strides))
        y = layer(y, name, "conv2")
        return functional.relu(y + layer(x, name, "project", strides=strides))

    y = functional.relu(layer(torch.tensor(x.transpose(0, 3, 1, 2)), "stem", strides=2))
    y = functional.max_pool2d(y, 3, 2, 1)
    y = block(block(y, "stage0_block0", 1), "stage1_block0", 2).mean((2, 3)).numpy()
    logits = variables["params"]["logits"]
    expected = y @ logits["kernel"] + logits["bias"]
    found = model.apply(variables, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
