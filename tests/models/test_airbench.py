"""Whitening, partial identities, and the network of the CIFAR-10 records."""

import dataclasses
import functools
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jdl
from jdl import models
from jdl.data import Arrays, Scale
from jdl.layers import Whitening, exact_gelu, partial_identity, whitening_kernel
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, Pmap, Single
from jdl.paths import path_name
from jdl.sweeps.seeds import train_seeds
from tests.optimizer_steps import run as run_steps

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(np.cumsum(RNG.normal(size=(64, 6, 7, 2)), axis=2), jnp.float32)
BYTES = RNG.integers(0, 256, (24, 12, 12, 3), np.uint8)


def patches(images, size=2):
    """Patches (n, size * size * channels), one by one."""
    return np.array(
        [
            image[i : i + size, j : j + size].ravel()
            for image in np.asarray(images, np.float64)
            for i in range(image.shape[0] - size + 1)
            for j in range(image.shape[1] - size + 1)
        ]
    )


def test_whitened_patches_are_uncorrelated_and_of_one_size():
    layer = Whitening(epsilon=0.01)
    y, variables = layer.init_with_output(jax.random.key(0), IMAGES)
    assert y.shape == (64, 5, 6, 16)
    half, other = np.split(np.asarray(y).reshape(-1, 16), 2, axis=1)
    np.testing.assert_array_equal(other, -half)
    raw = patches(IMAGES)
    spectrum = np.linalg.eigvalsh(raw.T @ raw / len(raw))
    expected = np.diag(spectrum / (spectrum + 0.01))
    np.testing.assert_allclose(half.T @ half / len(half), expected, atol=2e-3)
    assert jax.tree.map(jnp.shape, variables) == {
        "frozen": {"kernel": (2, 2, 2, 16)}, "params": {"bias": (16,)},
    }  # fmt: skip
    biased = layer.apply({**variables, "params": {"bias": jnp.arange(16.0)}}, IMAGES)
    np.testing.assert_allclose(biased, y + jnp.arange(16.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.full((4, 4, 3), 200), BYTES[0, :4, :4]])
def test_images_that_span_no_space_have_finite_filters(image):
    assert np.isfinite(whitening_kernel(jnp.asarray(image)[None], 2, 5e-4)).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 8), (5, 3)])
def test_a_partial_identity_passes_its_channels_on(inputs, outputs):
    kernel = partial_identity()(jax.random.key(0), (3, 3, inputs, outputs), jnp.float32)
    kept = min(inputs, outputs)
    expected = np.zeros((3, 3, inputs, kept))
    expected[1, 1, range(kept), range(kept)] = 1
    np.testing.assert_array_equal(kernel[..., :inputs], expected)
    rest = np.asarray(kernel[..., inputs:])
    assert (np.abs(rest) <= 1 / np.sqrt(9 * inputs)).all()
    if rest.size:
        assert np.abs(rest).max() > 0.9 / np.sqrt(9 * inputs)


def test_the_network_has_the_records_parameters():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(models.Airbench().init, jax.random.key(0), x)
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert sizes == {"params": 1_971_352, "frozen": 288, "batch_stats": 2 * 1_152}


def convolve(x, kernel, pad):
    x, size = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), len(kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return np.einsum("bxycij,ijco->bxyo", windows, kernel)


def gelu(x):
    return x * scipy.special.ndtr(x)


@pytest.mark.parametrize("train", [False, True])
def test_the_network_equals_numpys(train):
    model = models.Airbench(channels=(5, 6), num_classes=4, activation=exact_gelu)
    x = RNG.normal(size=(6, 16, 16, 3)).astype(np.float32)
    fresh = jax.jit(model.init)(jax.random.key(0), x)
    noise = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: np.abs(leaf + noise.normal(0, 0.1, leaf.shape)).astype(np.float32), fresh
    )
    params, running = variables["params"], {}

    def normalize(y, name):
        seen = variables["batch_stats"][name]["BatchNorm_0"]
        mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if train else (seen["mean"], seen["var"])
        running[name] = 0.6 * seen["mean"] + 0.4 * mean
        return (y - mean) / np.sqrt(var) + params[name]["BatchNorm_0"]["bias"]

    y = gelu(convolve(x, variables["frozen"]["whiten"]["kernel"], 0) + params["whiten"]["bias"])
    for group in ("group0", "group1"):
        y = convolve(y, params[f"{group}_conv0"]["kernel"], 1)
        half = y.shape[1] // 2
        y = y[:, : 2 * half, : 2 * half].reshape(6, half, 2, half, 2, -1).max((2, 4))
        y = gelu(normalize(y, f"{group}_norm0"))
        y = gelu(normalize(convolve(y, params[f"{group}_conv1"]["kernel"], 1), f"{group}_norm1"))
    expected = y.max((1, 2)) @ params["logits"]["kernel"] / 6
    apply = jax.jit(functools.partial(model.apply, train=train, mutable=["batch_stats"]))
    found, changed = apply(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    for name, mean in running.items() if train else ():
        now = changed["batch_stats"][name]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(now, mean, rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(Whitening(name="whiten")(x)).mean((1, 2)))


def make(**changes):
    data = Arrays(
        {"train": {"image": BYTES, "label": np.arange(24) % 2}},
        validation_fraction=0.0,
        test_fraction=0.0,
        device_transforms=(Scale(),),
    )
    settings = {"strategy": Single(), "hooks": (), "steps": 4, "batch_size": 8, **changes}
    return jdl.Experiment(Small(), data=data, optimizer=SGD(0.1), **settings)


def frozen(run):
    return np.asarray(run.gather_state().collections["frozen"]["whiten"]["kernel"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("airbench")
    return folder / "run", jdl.train(make(), folder / "run")


def test_a_run_whitens_its_first_batch_and_keeps_that(trained, tmp_path):
    workdir, run = trained
    first = run.pipeline("train").step_input(0, 8, 0, run.shard)
    raw = patches(BYTES[first] / 255)
    whitened = raw @ frozen(run).reshape(12, 24)[:, :12]
    spectrum = np.linalg.eigvalsh(raw.T @ raw / len(raw))
    expected = np.diag(spectrum / (spectrum + 5e-4))
    np.testing.assert_allclose(whitened.T @ whitened / len(raw), expected, atol=5e-3)
    shutil.copytree(workdir, tmp_path / "moved")
    again = jdl.open(tmp_path / "moved")  # arrays are not in the directory: the data is gone
    np.testing.assert_array_equal(frozen(again), frozen(run))
    np.testing.assert_array_equal(again.predict(BYTES), run.predict(BYTES))


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(trained, tmp_path):
    _, whole = trained
    jdl.train(make(steps=2, hooks=(jdl.hooks.Checkpoint(),)), tmp_path / "run")
    resumed = jdl.train(make(), tmp_path / "run")
    assert resumed.result["params_sha256"] == whole.result["params_sha256"]
    np.testing.assert_array_equal(frozen(resumed), frozen(whole))


@pytest.mark.parametrize("strategy", [DataParallel(devices=2), Pmap(devices=2)])
def test_devices_whiten_the_whole_first_batch(strategy, trained):
    run = jdl.train(make(strategy=strategy))
    np.testing.assert_allclose(
        np.abs(frozen(run)), np.abs(frozen(trained[1])), rtol=1e-2, atol=1e-2
    )


def test_seeds_together_whiten_each_its_own_first_batch(trained, tmp_path):
    train_seeds(make(), 2, tmp_path / "seeds", vectorize="always")
    kernels = [frozen(jdl.open(tmp_path / "seeds" / f"seed-{seed}")) for seed in (0, 1)]
    np.testing.assert_allclose(np.abs(kernels[0]), np.abs(frozen(trained[1])), rtol=1e-3, atol=1e-3)
    alone = jdl.train(dataclasses.replace(make(), seed=1))
    np.testing.assert_allclose(np.abs(kernels[1]), np.abs(frozen(alone)), rtol=1e-3, atol=1e-3)
    assert not np.allclose(np.abs(kernels[0]), np.abs(kernels[1]), atol=1e-2)


def orthogonalized(gradient):
    """Three Newton-Schulz steps on (outputs, inputs), as in the record's code."""
    x = gradient / np.linalg.norm(gradient)
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_the_experiments_optimizer_takes_the_records_steps():
    """On constant gradients; on others Optax's bias correction turns Muon's first few steps."""
    experiment = jdl.load(Path(__file__).parents[2] / "experiments" / "cifar10_94.py").experiment
    size, steps = experiment.batch_size, 8
    model = models.Airbench(channels=(5, 6))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]
    given = jax.tree.map(lambda leaf: 1e-3 * RNG.normal(size=leaf.shape).astype(np.float32), params)
    found, _ = run_steps(experiment.optimizer, params, [given] * steps)

    def sgd(leaf, gradient, rate, until=steps):
        velocity, decay = 0, 2e-6 * size / rate
        for step in range(until):
            summed = gradient * size + decay * leaf  # the record sums its loss over the batch
            velocity = 0.85 * velocity + summed
            leaf = leaf - rate * (1 - step / until) * (summed + 0.85 * velocity)
        return leaf

    def muon(kernel, gradient):
        flat, turned = (np.asarray(x).reshape(-1, x.shape[-1]).T for x in (kernel, gradient))
        for step in range(steps):
            flat = flat * len(flat) ** 0.5 / np.linalg.norm(flat)
            flat = flat - 0.24 * (1 - step / steps) * orthogonalized(turned)
        return flat.T.reshape(kernel.shape)

    def expected(path, leaf, gradient):
        name = path_name(path)
        if name == "whiten.bias":
            return sgd(leaf, gradient, 0.053, 3)
        if name.endswith("bias"):
            return sgd(leaf, gradient, 0.053)
        return sgd(leaf, gradient, 0.67) if "logits" in name else muon(leaf, gradient)

    wanted = jax.tree_util.tree_map_with_path(expected, params, given)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
    jax.tree.map(close, found[-1], wanted)
