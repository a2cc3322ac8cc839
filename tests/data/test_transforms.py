"""Transforms against Pillow and NumPy, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jdl.data import Normalize, RandomCrop, RandomFlip, Resize, Scale
from jdl.errors import UserError

GENERATOR = np.random.default_rng(0)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def pixels(*shape):
    return GENERATOR.integers(1, 256, shape, dtype=np.uint8)  # never the zero of a margin


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(9, 5), (3, 20), (4, 7)])
def test_resize_equals_pillow(channels, shape):
    image = pixels(*shape, channels)
    example = {"image": image, "label": 3}
    small = Resize(height=4, width=7)(example)
    assert small["label"] == 3
    assert small["image"].shape == (4, 7, channels)
    assert small["image"].dtype == np.uint8
    for channel in range(channels):
        picture = Image.fromarray(image[..., channel])
        expected = np.asarray(picture.resize((7, 4), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(small["image"][..., channel], expected)
    np.testing.assert_array_equal(example["image"], image)


def test_resize_interpolates_linearly():
    ramp = np.array([[0, 100, 200]], np.uint8)[..., None]
    wide = Resize(height=1, width=6, name="x")({"x": ramp})["x"][0, :, 0]
    # Output i looks at input (i + 1/2) / 2 - 1/2; at the edges the outermost pixel counts alone.
    assert wide.tolist() == [0, 25, 75, 125, 175, 200]


@pytest.mark.parametrize("size", [{"height": 0}, {"width": -3}])
def test_resize_needs_a_size(size):
    with pytest.raises(UserError, match="positive size"):
        Resize(**size)


def test_scale():
    image, label = pixels(5, 2, 2, 3), np.arange(5)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    for transform, expected in (
        (Scale(), image / 255.0),
        (Scale(divisor=16.0, offset=8.0), (image - 8.0) / 16.0),
    ):
        for given in (None, keys(5)):
            scaled = transform(batch, given)
            assert scaled["image"].dtype == jnp.float32
            np.testing.assert_allclose(scaled["image"], expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(scaled["label"], label)
    named = Scale(divisor=2.0, name="label")(batch, None)
    np.testing.assert_array_equal(named["label"], label / 2)
    np.testing.assert_array_equal(named["image"], image)


def shifted(image, down, right):
    """The image moved, with zeros where it moved away from."""
    height, width, _ = image.shape
    moved = np.zeros_like(image)
    rows, columns = (
        (slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size + min(-by, 0)))
        for by, size in ((down, height), (right, width))
    )
    moved[rows[0], columns[0]] = image[rows[1], columns[1]]
    return moved


def offset(image, cropped, padding):
    """By how much an image was moved; fails unless exactly one offset explains every pixel."""
    span = range(-padding, padding + 1)
    fits = [
        (down, right)
        for down in span
        for right in span
        if np.array_equal(shifted(image, down, right), cropped)
    ]
    assert len(fits) == 1
    return fits[0]


def test_random_crop_moves_each_image_by_an_offset_of_its_own():
    count, padding = 900, 1
    image = pixels(5, 6, 2)
    batch = {"image": jnp.asarray(np.stack([image] * count)), "label": jnp.arange(count)}
    cropped = RandomCrop(padding=padding)(batch, keys(count))
    assert cropped["image"].dtype == jnp.uint8
    np.testing.assert_array_equal(cropped["label"], np.arange(count))
    found = [offset(image, one, padding) for one in np.asarray(cropped["image"])]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 9
    # Chi-square with 8 degrees of freedom: above 26.1 for one of a thousand sets of keys.
    assert ((counts - 100) ** 2 / 100).sum() < 26.1


def test_random_flip_mirrors_half_of_the_images():
    count = 400
    images = pixels(count, 3, 4, 2)
    flipped = RandomFlip()({"image": jnp.asarray(images)}, keys(count))["image"]
    mirrored = np.array(
        [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    )
    kept = np.array([np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations of 10


def test_two_random_transforms_do_not_follow_each_other():
    count = 1200
    image = pixels(4, 4, 1)
    batch = {"image": jnp.asarray(np.stack([image] * count))}
    given = keys(count)
    crops = np.asarray(RandomCrop(padding=1)(batch, given)["image"])
    flips = np.asarray(RandomFlip()(batch, given)["image"])
    places = np.array([offset(image, crop, 1) for crop in crops])
    flipped = np.array([not np.array_equal(flip, image) for flip in flips])
    for axis in (0, 1):
        # The correlation of independent draws deviates from zero by 1 / sqrt(1200) = 0.029.
        assert abs(np.corrcoef(places[:, axis], flipped)[0, 1]) < 0.1


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_a_crop_reads_beyond_the_edges_as_numpy_pads(mode):
    images = pixels(60, 6, 7, 3)
    crop = RandomCrop(padding=2, mode=mode)
    found = np.asarray(crop({"image": jnp.asarray(images)}, keys(60))["image"])
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode)
    places = set()
    for image, wide in zip(found, padded, strict=True):
        all_crops = {(i, j): wide[i : i + 6, j : j + 7] for i in range(5) for j in range(5)}
        places.add(next(at for at, each in all_crops.items() if np.array_equal(each, image)))
    assert len(places) > 15  # of 25


def test_normalize_is_per_channel():
    images, mean, std = pixels(4, 5, 6, 3), np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    transform = Normalize(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    for given in (keys(4), None):
        found = transform({"image": jnp.asarray(images)}, given)["image"]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="3 means, where 'image' has 1 channels"):
        transform({"image": jnp.zeros((2, 4, 4, 1))}, None)
    with pytest.raises(UserError, match="a mean and a std above 0 for each channel"):
        Normalize(mean=(0.5,), std=(0.0,))
