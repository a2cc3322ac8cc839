"""Augmentation against SciPy and its definition: one draw per example, none in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jdl.data import ColorJitter, CutMix, Cutout, Mixup, RandomAffine, RandomCrop, RandomFlip
from jdl.data.geometry import resample
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, Pmap, Single
from jdl.step import Program
from jdl.tasks import Classification

EVERY = [
    RandomAffine(
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
    ),
    RandomCrop(padding=2),
    RandomFlip(),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    Cutout(size=3),
]
MIXING = [Mixup(num_classes=4), CutMix(num_classes=4)]


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def name(transform):
    return type(transform).__name__


@pytest.mark.parametrize("fill_mode", ["nearest", "reflect", "constant", "wrap"])
@pytest.mark.parametrize("seed", range(6))
def test_resampling_is_scipys_pixel_by_pixel(fill_mode, seed):
    rng = np.random.default_rng(seed)
    image = pixels(int(rng.integers(1, 20)), int(rng.integers(2, 20)), 3, seed=seed)
    matrix = np.hstack([np.eye(2) + rng.normal(0, 0.5, (2, 2)), rng.normal(0, 15, (2, 1))])
    matrix = matrix.astype(np.float32)
    found = np.asarray(resample(jnp.asarray(image), jnp.asarray(matrix), fill_mode, 7.0))
    close = []
    for channel in range(3):
        expected = scipy.ndimage.affine_transform(
            image[..., channel].astype(np.float64),
            matrix[:, :2],
            matrix[:, 2],
            order=1,
            mode=fill_mode,
            cval=7.0,
        )
        close.append(np.isclose(found[..., channel], expected, atol=0.05))
    # Where rounding puts a place on the other side of an edge, a pixel may differ as a whole.
    assert np.mean(close) > 0.99


def kerass(height, width, theta, tx, ty, shear, zx, zy):
    """The matrix of `keras.preprocessing.image.apply_affine_transform`, part by part."""
    theta, shear = np.deg2rad(theta), np.deg2rad(shear)
    matrix = np.array(
        [[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]]
    )
    matrix = matrix @ np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    matrix = matrix @ np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    matrix = matrix @ np.diag([zx, zy, 1])
    row, column = height / 2 - 0.5, width / 2 - 0.5
    offset = np.array([[1, 0, row], [0, 1, column], [0, 0, 1]])
    back = np.array([[1, 0, -row], [0, 1, -column], [0, 0, 1]])
    return (offset @ matrix @ back)[:2]


def test_the_seven_options_are_kerass():
    height, width = 9, 14
    options = {
        "rotation_range": 40.0,
        "width_shift_range": 0.2,
        "height_shift_range": 0.3,
        "shear_range": 10.0,
        "zoom_range": 0.25,
    }
    for seed in range(5):
        key = jax.random.key(seed)
        turn, down, right, shear, tall, wide, _ = np.asarray(
            jax.random.uniform(key, (7,), minval=-1.0)
        )
        expected = kerass(
            height,
            width,
            turn * 40,
            down * 0.3 * height,
            right * 0.2 * width,
            shear * 10,
            1 + tall * 0.25,
            1 + wide * 0.25,
        )
        found = RandomAffine(**options).matrix(key, height, width)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, 0.0),
        ({"rotation_range": 40.0}, 40.0),
        ({"width_shift_range": 0.2}, 0.2),
    ],
)
def test_parameters_spread_over_their_range_and_no_further(options, moves):
    matrices = np.asarray(
        jax.vmap(lambda key: RandomAffine(**options).matrix(key, 10, 20))(keys(500))
    )
    if "rotation_range" in options:
        found = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    else:
        found = matrices[:, 1, 2] / 20
    assert abs(found).max() <= moves * (1 + 1e-5) + 1e-6
    if moves:
        assert found.min() < -0.95 * moves
        assert found.max() > 0.95 * moves


def test_without_options_nothing_moves_and_a_flip_mirrors_half():
    images = pixels(200, 5, 6, 3)
    same = RandomAffine()({"image": jnp.asarray(images)}, keys(200))["image"]
    np.testing.assert_array_equal(same, images)
    flipped = RandomAffine(horizontal_flip=True)({"image": jnp.asarray(images)}, keys(200))["image"]
    mirrored = (np.asarray(flipped) == images[:, :, ::-1]).all((1, 2, 3))
    kept = (np.asarray(flipped) == images).all((1, 2, 3))
    assert (mirrored | kept).all()
    assert 70 < mirrored.sum() < 130  # four standard deviations of 7


def test_zoom_needs_a_share():
    with pytest.raises(UserError, match="zoom_range"):
        RandomAffine(zoom_range=1.0)


def gray(image):
    return np.asarray(image, np.float64) @ [0.299, 0.587, 0.114]


def test_jitter_stays_white_and_keeps_what_it_should():
    images = jnp.asarray(pixels(50, 6, 7, 3))
    bright = ColorJitter(brightness=0.5)({"image": images}, keys(50))["image"]
    ratio = np.asarray(bright) / np.asarray(images)
    unclipped = np.where(np.asarray(bright) < 255, ratio, np.nan)
    assert np.nanstd(unclipped.reshape(50, -1), axis=1).max() < 1e-5  # one factor an image
    assert np.nanmin(ratio) >= 0.5
    assert bright.max() <= 255
    pale = ColorJitter(saturation=0.5)({"image": images * 0.5 + 60}, keys(50))["image"]
    np.testing.assert_allclose(gray(pale), gray(images * 0.5 + 60), rtol=1e-3)
    flat = ColorJitter(contrast=0.5)({"image": images * 0.25 + 90}, keys(50))["image"]
    means = [gray(x).mean((1, 2)) for x in (flat, images * 0.25 + 90)]
    np.testing.assert_allclose(*means, rtol=1e-3)


def test_cutout_blackens_one_square():
    images = pixels(60, 12, 12, 1)
    cut = np.asarray(Cutout(size=4)({"image": jnp.asarray(images)}, keys(60))["image"])
    for before, after in zip(images, cut, strict=True):
        rows, columns = np.nonzero(after[..., 0] == 0)
        assert 0 < len(rows) <= 16
        assert len(rows) == len(set(rows)) * len(set(columns))
        kept = after != 0
        np.testing.assert_array_equal(after[kept], before[kept])


@pytest.mark.parametrize("transform", MIXING, ids=name)
def test_mixed_labels_are_the_shares_of_the_pixels(transform):
    labels = np.arange(64) % 4
    images = np.broadcast_to(labels[:, None, None, None], (64, 8, 9, 1)).astype(np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    mixed = transform(batch, keys(64))
    shares = np.asarray(mixed["label"])
    assert shares.shape == (64, 4)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    # The mean pixel is the mean label: what an image shows, its label says.
    means = np.asarray(mixed["image"], np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(means, shares @ np.arange(4), rtol=1e-4, atol=1e-4)
    assert (shares.max(1) < 0.999).any()


@pytest.mark.parametrize("transform", EVERY, ids=name)
def test_randomness_is_each_examples_own(transform):
    images, given = jnp.asarray(pixels(16, 6, 6, 3)), keys(16)
    whole = transform({"image": images}, given)["image"]
    np.testing.assert_array_equal(whole, transform({"image": images}, given)["image"])
    order = np.random.default_rng(0).permutation(16)[:5]
    part = transform({"image": images[order]}, given[order])["image"]
    np.testing.assert_array_equal(part, whole[order])
    other = transform({"image": images}, keys(16, seed=1))["image"]
    assert not np.array_equal(other, whole)


@pytest.mark.parametrize("transform", [*EVERY, *MIXING], ids=name)
def test_evaluation_is_left_alone(transform):
    batch = {"image": jnp.asarray(pixels(16, 6, 6, 3)), "label": jnp.arange(16) % 4}
    for given, found in zip(batch.values(), transform(batch, None).values(), strict=True):
        np.testing.assert_array_equal(given, found)


def test_mixed_batches_have_the_same_loss_under_every_strategy():
    rng = np.random.default_rng(0)
    batch = {
        "image": np.float32(rng.normal(size=(8, 6, 6, 1))),
        "label": rng.integers(0, 4, 8),
        "mask": np.arange(8) < 7,
    }
    program = Program(MLP((), 4), Classification(), SGD(0.5).build(9), MIXING)
    found = []
    for strategy, parts in ((Single(), 1), (DataParallel(2), 2), (Pmap(2), 2)):
        parted = dataclasses.replace(program, num_microbatches=parts)
        steps = strategy.compile(parted, {}, batch)
        state, losses = steps.init(jax.random.key(0)), []
        for _ in range(3):
            state, packed = steps.update(state, steps.put(batch))
            losses.append(compute(packed.unpack()[0])["loss"])
        found.append(losses)
    np.testing.assert_allclose(found, [found[0]] * len(found), rtol=1e-5)


def test_labels_that_are_mixed_already_are_mixed_again():
    batch = {"image": jnp.asarray(pixels(4, 6, 6, 1)), "label": jnp.arange(4)}
    once = Mixup(num_classes=4)(batch, keys(4))
    twice = CutMix(num_classes=4)(once, keys(4, seed=1))
    assert twice["label"].shape == (4, 4)
    np.testing.assert_allclose(twice["label"].sum(1), 1, rtol=1e-6)
    kept = np.mean(np.all(twice["image"] == once["image"], -1), (1, 2))
    expected = kept[:, None] * once["label"] + (1 - kept[:, None]) * np.roll(once["label"], 1, 0)
    np.testing.assert_allclose(twice["label"], expected, atol=1e-6)
