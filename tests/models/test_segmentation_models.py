"""Networks for segmentation: parameters, shapes of any size, and weights of a ResNet."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from jdl.errors import UserError
from jdl.models import DeepLabV3Plus, DeepLabV3PlusResNet50, DeepLabV3PlusSmall, ENet, ResNet50


def traced(model, *shape):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    apply = functools.partial(model.init_with_output, jax.random.key(0))
    return jax.eval_shape(apply, x)


def size(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "stride"),
    [(DeepLabV3PlusSmall(features=11), 4), (ENet(features=11), 2)],
)
@pytest.mark.parametrize("shape", [(64, 96), (45, 51)])
def test_every_block_has_its_outputs(model, stride, shape):
    y, variables = traced(model, *shape, 3)
    assert y.shape == (2, *(math.ceil(side / stride) for side in shape), 11)
    assert y.dtype == jnp.float32
    assert size(variables["params"]) < 2.5e6


def test_enet_is_as_small_as_published():
    _, variables = traced(ENet(features=12), 64, 64, 3)
    assert size(variables["params"]) == pytest.approx(0.37e6, rel=0.05)  # table 3 of the paper


def test_deeplab_takes_the_weights_of_a_resnet():
    _, deeplab = traced(DeepLabV3PlusResNet50(), 64, 64, 3)
    _, resnet = traced(ResNet50(), 64, 64, 3)
    for name, part in resnet["params"].items():
        if name != "logits":
            assert jax.tree.map(jnp.shape, deeplab["params"][name]) == jax.tree.map(jnp.shape, part)
    assert size(deeplab["params"]) == pytest.approx(40.3e6, rel=0.02)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_last_stage_has_the_output_stride(stride):
    model = DeepLabV3Plus((1, 1, 1, 1), 8, False, stride, pyramid_channels=8)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    capture = functools.partial(
        model.init_with_output, jax.random.key(0), capture_intermediates=True
    )
    _, seen = jax.eval_shape(capture, x)
    last = seen["intermediates"]["stage3_block0"]["__call__"][0]
    assert last.shape == (1, 64 // stride, 64 // stride, 64)
    with pytest.raises(UserError, match="output_stride is 4, 8, 16 or 32, not 5"):
        traced(model.clone(output_stride=5), 64, 64, 3)
