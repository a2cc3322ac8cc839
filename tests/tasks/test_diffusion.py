"""Diffusion and variational autoencoding: losses, strategies, samples, edits and refusals."""

import dataclasses
import functools
import math
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jdl
from jdl import Experiment
from jdl.data import Arrays, Binarize, Scale
from jdl.diffusion import DDIM, CosinePath, Euler, LinearPath, VariancePreserving
from jdl.errors import UserError
from jdl.models import CNN, VAE, ConditionalUNet, DiT
from jdl.optimizers import Adam
from jdl.parallel import Pmap, Single
from jdl.state import TrainState
from jdl.tasks import Diffusion, SampleScores, VariationalAutoencoding, with_row_keys

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(24) % 3
DATA = Arrays({"train": {"image": PIXELS, "label": LABELS}}, device_transforms=(Scale(),))
TASK = Diffusion(num_classes=3, guidance_scale=2.0, sampler=Euler(3), resamplings=2)


class Net(nn.Module):
    """A dense network of image, time and condition."""

    @nn.compact
    def __call__(self, x, time, condition=None):
        rows = [x.reshape(len(x), -1), time[:, None], *([] if condition is None else [condition])]
        y = nn.tanh(nn.Dense(16)(jnp.concatenate(rows, -1)))
        return nn.Dense(16)(y).reshape(x.shape)


def make_experiment(**changes):
    settings = {
        "model": Net(), "task": TASK, "data": DATA, "optimizer": Adam(0.01, ema_decay=0.9),
        "steps": 4, "batch_size": 8, "hooks": (jdl.hooks.Checkpoint(),), "strategy": Single(),
        "runtime": jdl.Runtime(log_every=1), "final_train_evaluation": False,
    }  # fmt: skip
    return Experiment(**(settings | changes))


@functools.cache
def trained():
    return jdl.train(make_experiment())


def state_of(params):
    return TrainState(
        step=jnp.zeros((), jnp.int32), key=jax.random.key(0), params=params, collections={},
        opt_state=(),
    )  # fmt: skip


def batch_of(rows=4):
    batch = {
        "image": jnp.asarray(PIXELS[:rows] / 255, jnp.float32),
        "label": jnp.asarray(LABELS[:rows]),
    }
    return with_row_keys({**batch, "mask": jnp.arange(rows) < rows - 1}, jax.random.key(5))


def test_a_diffusion_is_the_same_under_pmap_and_in_microbatches():
    found = jdl.train(make_experiment(strategy=Pmap(2), num_microbatches=2))
    losses = found.history["train"]["loss"]
    np.testing.assert_allclose(losses, trained().history["train"]["loss"], rtol=1e-5)
    for name, value in trained().evaluate("validation").items():
        assert found.evaluate("validation")[name] == pytest.approx(value, rel=1e-5)
    samples = trained().sample(9).pixels
    np.testing.assert_allclose(found.sample(9).pixels, samples, atol=1e-5)
    np.testing.assert_array_equal(trained().sample(2).pixels, samples[:2])
    assert samples.shape == (9, 4, 4, 1)
    assert samples.min() >= 0
    assert samples.max() <= 1


@pytest.mark.parametrize(
    ("path", "prediction"),
    [(LinearPath(), "velocity"), (CosinePath(), "v"), (VariancePreserving(), "noise")],
    ids=["flow", "v", "noise"],
)
def test_the_loss_of_the_right_prediction_is_zero(path, prediction):
    """The model finds the noise of a single known image."""
    image = jnp.asarray(PIXELS[:1] / 255, jnp.float32)

    class Oracle(nn.Module):
        @nn.compact
        def __call__(self, x, time, condition=None):
            data, t = 2 * image - 1, time[:, None, None, None]
            noise = (x - path.alpha(t) * data) / path.sigma(t)
            return path.target(prediction, jnp.broadcast_to(data, x.shape), noise, time)

    task = Diffusion(path=path, prediction=prediction, sampler=DDIM(4))
    batch = batch_of() | {"image": jnp.repeat(image, 4, axis=0)}
    found, _ = task.batch_metrics(Oracle(), {}, state_of({}), batch, train=True)
    assert found["loss"].count == 3
    assert found["loss"].total == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(
        task.sample(Oracle(), state_of({}), batch), batch["image"], atol=1e-2
    )


def test_guidance_mixes_the_predictions_with_and_without_class():
    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, time, condition=None):
            level = jnp.where(condition.sum(-1) > 0, 0.3, 0.1)
            return jnp.broadcast_to(level[:, None, None, None], x.shape)

    classes = jnp.array([0, 2, 1, 1])
    for scale, expected in ((1.0, 0.3), (2.5, 0.1 + 2.5 * 0.2), (0.0, 0.1)):
        task = dataclasses.replace(TASK, guidance_scale=scale)
        denoise = task._denoise(Told(), state_of({}), classes)
        found = TASK.path.velocity(*denoise(jnp.zeros((4, 4, 4, 1)), jnp.float32(0.5)), 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    without = TASK._denoise(Told(), state_of({}), None)(jnp.zeros((4, 4, 4, 1)), jnp.float32(0.5))
    np.testing.assert_allclose(TASK.path.velocity(*without, 0.5), 0.1, rtol=1e-5)


def test_the_class_is_left_out_at_the_rate_and_drawn_where_there_is_none():
    keys = with_row_keys({"mask": jnp.ones(3000, bool)}, jax.random.key(1))
    np.testing.assert_allclose(np.bincount(TASK._classes(keys)) / 3000, 1 / 3, atol=0.03)
    np.testing.assert_array_equal(TASK._classes(batch_of()), LABELS[:4])
    times, dropped = Diffusion(condition_dropout=0.3)._draws(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert abs(float(dropped.mean()) - 0.3) < 0.03
    assert abs(float(times.mean()) - 0.5) < 0.02


def test_samples_of_a_class_have_its_condition():
    class Plain(nn.Module):  # of which the data are the class, whatever the point
        @nn.compact
        def __call__(self, x, time, condition=None):
            data = (condition.argmax(-1) / 2 - 0.5)[:, None, None, None]
            return (x - data) / time[:, None, None, None]

    run = jdl.train(make_experiment(model=Plain(), task=Diffusion(num_classes=3, sampler=Euler(2))))
    for label, value in ((0, 0.25), (2, 0.75)):
        np.testing.assert_allclose(run.sample(2, label=label).pixels, value, atol=1e-5)
    assert len(np.unique(run.sample(20).pixels.round(3))) == 3
    with pytest.raises(UserError, match=r"the label of samples is 3, outside 0\.\.2"):
        run.sample(2, label=3)


@pytest.mark.parametrize(
    ("model", "task", "transform"),
    [
        pytest.param(Net(), TASK, Scale(), marks=pytest.mark.slow),  # compiles two samplers
        (VAE((4,), latent_dim=2, features=16), VariationalAutoencoding(), Binarize()),
    ],
    ids=["diffusion", "vae"],
)
def test_samples_are_scored_in_the_features_of_a_network(model, task, transform):
    scores = SampleScores(CNN((2,), (6,), 3), splits=("test",), num_neighbors=1, subset_size=2)
    data = dataclasses.replace(DATA, device_transforms=(transform,), test_fraction=0.5)
    task = dataclasses.replace(task, scores=scores)
    run = jdl.train(make_experiment(model=model, task=task, data=data, steps=1))
    found = run.result["metrics"]["test"]
    assert {"loss", "kernel_distance", "nearest_distance", "precision"} <= found.keys()
    assert ("class_accuracy" in found) == isinstance(task, Diffusion)


def test_an_edit_keeps_the_other_pixels_exactly():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 2:] = True
    found = jdl.media.to_bytes(trained().edit(PIXELS[3], mask, count=3).pixels)
    assert (found[:, ~mask] == PIXELS[3][~mask]).all()
    assert (found[:, mask] != PIXELS[3][mask]).any()
    assert (found[0] != found[1]).any()
    little, much = (trained().edit(PIXELS[3], strength=s, count=3).pixels for s in (1e-3, 1.0))
    assert abs(little - PIXELS[3] / 255).max() < 0.02 < abs(much - PIXELS[3] / 255).max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image": PIXELS[0][:3]},
            r"has shape \(3, 4, 1\), where those of the run have \(4, 4, 1\)",
        ),
        (
            {"mask": np.ones((4, 4), bool)},
            "the mask covers every pixel, so that nothing .* is kept",
        ),
        (
            {"mask": np.zeros((4, 4), bool)},
            "the mask covers no pixel, so nothing would change",
        ),
        ({"mask": np.ones((2, 4), bool)}, r"the mask has shape \(2, 4\) and dtype bool"),
        ({"strength": 0.0}, "above 0 .* at most 1 .*, not 0.0"),
        ({"count": 0}, "must be at least 1, not 0"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        trained().edit(**({"image": PIXELS[0]} | arguments))


def test_a_run_that_was_moved_edits_files(tmp_path, command):
    jdl.train(make_experiment(), tmp_path / "run")
    moved = tmp_path / "elsewhere" / "run"
    shutil.move(tmp_path / "run", moved)
    image, mask, large = (tmp_path / f"{name}.png" for name in ("image", "mask", "large"))
    half = np.zeros((4, 4), np.uint8)
    half[:2] = 255
    for file, pixels in ((image, PIXELS[0, ..., 0]), (mask, half), (large, np.zeros((6, 5)))):
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    arguments = ("sample", moved, "--count", 2, "--out", tmp_path / "out")
    code, out, _ = command(*arguments, "--edit", image, "--mask", mask)
    assert code == 0
    for file in out.split():
        pixels = np.asarray(Image.open(file))
        assert (pixels[2:] == PIXELS[0, 2:, :, 0]).all()
        assert (pixels[:2] != PIXELS[0, :2, :, 0]).any()
    size = "large.png is 5x6 pixels, where the run makes images of 4x4: resize"
    for more, message in (
        (("--edit", large), size),
        (("--edit", image, "--mask", large), size),
        (("--edit", image, "--strength", 2), "at most 1 (a new image), not 2.0"),
        (("--mask", mask), "name it with --edit IMAGE"),
        (("--edit", image, "--label", 1), "an image is edited without a class"),
        (("--label", "cat"), "there is no class 'cat'"),
    ):
        code, _, err = command(*arguments, *more)
        assert code == 2
        assert message in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 2.0}, "task.guidance_scale=2.0 has no effect without classes"),
        ({"value_range": (1.0, 0.0)}, r"task\.value_range must rise, which \(1.0, 0.0\) does not"),
        ({"condition_dropout": 1.5}, r"task\.condition_dropout must be in \[0, 1\], not 1.5"),
        ({"prediction": "noise"}, "'noise' says nothing about the data at the end of LinearPath"),
        ({"resamplings": 0}, "at least 0, and task.resamplings 1, not 0 and 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Diffusion(**changes)


def test_data_and_models_that_do_not_fit_are_refused(tmp_path):
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x, time, condition=None):
            return nn.Dense(3)(x.reshape(len(x), -1))

    raw = dataclasses.replace(DATA, device_transforms=())
    for changes, message in (
        (
            {"data": raw},
            "Diffusion needs floats in task.value_range .*, not uint8: add jdl.data.Scale",
        ),
        ({"task": Diffusion(num_classes=2)}, "label 2 at row . is outside 0..1"),
        ({"model": Flat()}, r"Flat maps arrays of shape \(4, 4, 1\) to \(3,\)"),
        (
            {"model": VAE(), "task": VariationalAutoencoding()},
            r"784,\) logits .* set model\.features to 16",
        ),
        ({"task": VariationalAutoencoding()}, "Net has no method 'encode'"),
        (
            {"model": VAE(features=16), "task": VariationalAutoencoding(), "data": raw},
            "needs floats from 0 to 1, not uint8",
        ),
    ):
        with pytest.raises(UserError, match=message):
            jdl.train(make_experiment(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    classifier = jdl.fit(nn.Dense(2), np.ones((8, 3)), np.arange(8) % 2, epochs=1)
    with pytest.raises(UserError, match="Classification cannot edit images"):
        classifier.edit(np.ones(3))
    task = dataclasses.replace(TASK, condition_dropout=0.0)
    with pytest.raises(UserError, match=r"trained with task\.condition_dropout=0"):
        task.edit(Net(), state_of({}), {**batch_of(), "edit_strength": jnp.ones(4)})


@pytest.mark.parametrize(
    "model",
    [
        ConditionalUNet((8,), stride=2, num_heads=2, embed_dim=4),
        DiT(patch_size=2, num_layers=1, num_heads=2, embed_dim=8),
    ],
    ids=["unet", "dit"],
)
def test_networks_depend_on_time_and_condition(model):
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8, 4, 1)), (3, 8, 4, 1))
    inputs = x, jnp.array([0.1, 0.9, 0.1]), jnp.eye(2)[jnp.array([0, 0, 1])]
    shapes, rng = jax.eval_shape(model.init, jax.random.key(1), *inputs), np.random.default_rng(0)
    # Drawn, since the initial last layer is zero.
    variables = jax.tree.map(lambda y: rng.normal(0, 0.3, y.shape).astype(y.dtype), shapes)
    first, later, other = jax.jit(model.apply)(variables, *inputs)
    assert first.shape == (8, 4, 1)
    assert min(abs(first - later).max(), abs(first - other).max()) > 1e-3
    with pytest.raises(UserError, match="7x4"):
        jax.eval_shape(model.init, jax.random.key(0), x[:, :7], inputs[1])


def test_the_bound_of_a_linear_gaussian_encoder_is_that_of_integration():
    """With one latent dimension: quadrature exceeds every bound, and is close to the tightest."""
    model = VAE(widths=(6,), latent_dim=1, features=4)
    x = jnp.array([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    @jax.jit
    def integrate():
        grid = jnp.linspace(-8, 8, 2001)[:, None]
        logits = model.apply({"params": params}, grid, method="decode")
        log_x = (x[:, None] * logits - jnp.logaddexp(0, logits)).sum(-1)
        density = -(grid[:, 0] ** 2) / 2 - math.log(math.sqrt(2 * math.pi)) + math.log(16 / 2000)
        mean, log_variance = model.apply({"params": params}, x[:2], method="encode")
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(1) / 2
        return jax.nn.logsumexp(log_x + density, axis=1), kl

    evidence, kl = integrate()
    task = VariationalAutoencoding(
        importance_samples=300, loss_terms=(("reconstruction", 1.0), ("kl", 1.0))
    )
    batch = {"image": x, "gray": x / 2, "mask": jnp.array([True, True, False])}
    found = jdl.metrics.compute(task.evaluate(
        model, state_of(params), with_row_keys(batch, jax.random.key(1))
    ))  # fmt: skip
    assert found["importance_loss"] == pytest.approx(-float(evidence[:2].mean()), abs=0.02)
    assert found["loss"] == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-5)
    assert found["gray_loss"] != found["loss"]
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-5)


def test_pixels_are_binarized_alike_in_every_evaluation():
    binarize = Binarize()
    first, same = (binarize({"image": jnp.asarray(PIXELS[rows])}, None) for rows in ([3], [5, 3]))
    np.testing.assert_array_equal(first["image"][0], same["image"][1])
    np.testing.assert_allclose(first["gray"][0], PIXELS[3] / 255, rtol=1e-6)
    many = jnp.full((4000, 2, 1), 0.3)
    drawn = binarize({"image": many}, jax.random.split(jax.random.key(0), 4000))["image"]
    assert set(np.unique(drawn)) == {0, 1}
    assert abs(float(drawn.mean()) - 0.3) < 0.03
    with pytest.raises(UserError, match="Binarize takes uint8 or float32, where 'image' is int32"):
        binarize({"image": jnp.ones((2, 3), jnp.int32)}, None)
