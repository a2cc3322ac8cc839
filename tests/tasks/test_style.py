"""Style transfer: losses against their formulas, features, and what cannot be compared."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jdl
from jdl import Experiment
from jdl.data import Arrays, Scale
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import CNN, ImageTransformNet
from jdl.optimizers import Adam
from jdl.parallel import Pmap, Single
from jdl.step import Program
from jdl.tasks import Classification, Frozen, StyleTransfer
from jdl.tasks.style import gram, read_style

NETWORK = CNN((3, 4), (), 2, pooling="mean", global_pooling=True)
ROWS = 4
IMAGES = np.random.default_rng(0).random((ROWS, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    file = tmp_path_factory.mktemp("style") / "style.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)).save(file)
    return str(file)


def task_of(style, **fields):
    fields = {"content_layers": ("Conv_1",), "style_layers": ("Conv_0", "Conv_1")} | fields
    return StyleTransfer(features=Frozen(NETWORK, name="features"), style=style, **fields)


class Tinted(nn.Module):
    """Images times a color."""

    @nn.compact
    def __call__(self, image):
        return image * self.param("color", nn.initializers.constant(0.5), (image.shape[-1],))


def maps(variables, x):
    """Activations of both convolutions, by Flax itself."""
    _, seen = NETWORK.apply(variables, jnp.asarray(x), capture_intermediates=True)
    return [np.maximum(seen["intermediates"][f"Conv_{i}"]["__call__"][0], 0) for i in range(2)]


def products(x):
    """Gram matrices, pixel by pixel."""
    pixels = x.reshape(len(x), -1, x.shape[-1])
    return np.stack([sum(np.outer(p, p) for p in rows) / len(rows) for rows in pixels])


def distance(x, y):
    axes = tuple(range(1, x.ndim))
    return ((x - y) ** 2).sum(axes) / (y**2).sum(axes)


@functools.cache
def scores(strategy, style):
    """The network, metrics of a step, whose other rows are padding, and the color after it."""
    terms = (("content", 2.0), ("style", 0.5), ("variation", 3.0))
    program = Program(Tinted(), task_of(style, loss_terms=terms), Adam(0.1).build(10))
    batch = {"image": IMAGES, "mask": np.arange(ROWS) % 2 == 0}
    steps = strategy.compile(program, {}, batch)
    state = steps.init(jax.random.key(0))
    network = jax.tree.map(np.asarray, steps.gather(state).collections["features"])
    state, packed = steps.update(state, steps.put(batch))
    return network, compute(packed.unpack()[0]), steps.gather(state).params["color"]


def test_losses_are_their_formulas_over_rows_that_are_no_padding(style):
    variables, found, _ = scores(Single(), style)
    painted = np.float32(read_style(style, (8, 8, 3)))[None] / 255
    assert painted.shape == (1, 8, 12, 3)  # covers the images, and keeps its aspect
    real = IMAGES[::2]
    own, content, wanted = (maps(variables, x) for x in (real / 2, real, painted))
    rows = [distance(products(x), products(y)) for x, y in zip(own, wanted, strict=True)]
    steps = [(np.diff(real / 2, axis=axis) ** 2).mean((1, 2, 3)) for axis in (1, 2)]
    expected = {
        "content": distance(own[1], content[1]).mean(),
        "style": np.mean(rows),
        "variation": sum(steps).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
    total = 2 * expected["content"] + 0.5 * expected["style"] + 3 * expected["variation"]
    np.testing.assert_allclose(found["loss"], total, rtol=1e-4)


def test_a_step_is_the_same_where_each_device_has_its_rows(style):
    _, expected, color = scores(Single(), style)
    _, found, other = scores(Pmap(2), style)
    for name in ("loss", "content", "style"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(other, color, rtol=1e-5)


def test_an_image_is_its_own_picture():
    x = jnp.asarray(IMAGES)
    np.testing.assert_allclose(gram(x), products(IMAGES), rtol=1e-5)
    variables = {"params": {"color": jnp.ones(3)}}
    np.testing.assert_array_equal(Tinted().apply(variables, x), x)


def test_a_transform_network_keeps_the_size_of_its_images():
    model = ImageTransformNet(channels=(4, 8), num_blocks=1)
    x = jnp.asarray(np.random.default_rng(0).random((2, 9, 14, 3), np.float32))
    found, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
    assert found.shape == x.shape
    assert ((found > 0) & (found < 1)).all()


def experiment(task, image, **changes):
    arrays = {"image": image, "label": np.arange(len(image)) % 2}
    settings = {
        "model": Tinted(),
        "data": Arrays(
            {"train": arrays}, test_fraction=0, validation_fraction=0, device_transforms=(Scale(),)
        ),
        "strategy": Single(),
        "hooks": (),
        "batch_size": 4,
        "steps": 2,
    }
    return Experiment(**settings | changes, task=task)


def bad(image, **fields):
    return lambda style: experiment(task_of(**{"style": style, **fields}), image)


BYTES = np.uint8(IMAGES * 255)
HOLED = np.where(np.arange(8)[:, None] == 3, np.nan, IMAGES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(BYTES, style="nowhere.jpg"), r"task\.style: nowhere\.jpg does not exist"),
        (bad(BYTES, style_layers=("Conv_7",)), r"no module 'Conv_7' \(it has Conv_0, Conv_1"),
        (bad(BYTES, style_layers=("logits",)), r"'logits' .* returns shape \(4, 2\)"),
        (bad(BYTES, style_layers=()), r"task\.style_layers is a tuple"),
        (bad(HOLED), r"split 'train': 'image' holds NaN or infinity at row 0"),
        (bad(BYTES[..., 0]), "where style transfer needs images"),
        (
            lambda style: jdl.override(bad(BYTES)(style), {"data.device_transforms": ()}),
            r"'image' is uint8, .* add Scale\(\)",
        ),
        (
            lambda style: jdl.override(bad(BYTES)(style), {"model": CNN((4,), (), 2)}),
            r"pictures of shape \(2,\) for images of shape \(8, 8, 3\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(make, message, style):
    with pytest.raises(UserError, match=message):
        jdl.train(make(style))


def test_a_network_of_a_run_of_other_channels_is_refused(tmp_path, style):
    run = tmp_path / "features"
    task = task_of(style)
    features = Frozen(NETWORK, name="features", run=str(run))
    missing = experiment(
        jdl.override(experiment(task, BYTES), {"task.features": features}).task, BYTES
    )
    with pytest.raises(UserError, match=f"`jdl train features --workdir {run}`"):
        jdl.train(missing)
    gray = experiment(Classification(), BYTES[..., :1], model=NETWORK)
    jdl.train(gray, run)
    message = r"Conv_0\.kernel, of shape \(3, 3, 3, 3\).* has shape \(3, 3, 1, 3\).*it must be that"
    with pytest.raises(UserError, match=message):
        jdl.train(missing)
