"""RandAugment's operations against Pillow's and SciPy's, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from jdl.data import RandAugment, randaugment
from jdl.errors import UserError

PIXELS = np.random.default_rng(0).integers(20, 230, (17, 23, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def applied(function, signed, level=0.4):
    found = function(jnp.asarray(PIXELS, jnp.float32), jnp.float32(signed), float(level))
    return np.clip(np.round(found), 0, 255)


@pytest.mark.parametrize(
    ("function", "enhance"),
    [
        (randaugment.brightness, ImageEnhance.Brightness),
        (randaugment.color, ImageEnhance.Color),
        (randaugment.contrast, ImageEnhance.Contrast),
        (randaugment.sharpness, ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("signed", [-1.0, -0.3, 0.5, 1.0])
def test_enhancements_equal_pillow_s(function, enhance, signed):
    expected = np.asarray(enhance(PICTURE).enhance(1 + 0.9 * signed), np.float64)
    np.testing.assert_allclose(applied(function, signed), expected, atol=1.01)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 1.0])
def test_bits_and_thresholds_equal_pillow_s(level):
    bits = 8 - round(4 * level)
    np.testing.assert_array_equal(
        applied(randaugment.posterize, 0, level), ImageOps.posterize(PICTURE, bits)
    )
    np.testing.assert_array_equal(
        applied(randaugment.solarize, 0, level), ImageOps.solarize(PICTURE, 255 * (1 - level))
    )


def test_histogram_operations_equal_pillow_s():
    for function, expected in (
        (randaugment.auto_contrast, ImageOps.autocontrast(PICTURE)),
        (randaugment.equalize, ImageOps.equalize(PICTURE)),
    ):
        assert np.ptp(np.asarray(expected)) > np.ptp(PIXELS)
        np.testing.assert_allclose(applied(function, 0), np.asarray(expected, float), atol=1)
    flat = jnp.full((4, 5, 1), 77.0)
    for function in (randaugment.auto_contrast, randaugment.equalize):
        np.testing.assert_array_equal(function(flat, jnp.float32(0), 0.5), flat)


def test_rotation_equals_scipy_s():
    matrix = np.asarray(randaugment.rotate(jnp.float32(1.0), 17, 17))
    gray = PIXELS[:, :17, 0].astype(float)
    turned = ndimage.affine_transform(gray, matrix[:, :2], matrix[:, 2], order=1)
    expected = ndimage.rotate(gray, -30, reshape=False, order=1)
    np.testing.assert_allclose(turned, expected, atol=1e-2)


@pytest.mark.parametrize("shape", randaugment.GEOMETRIC_OPS)
def test_what_moves_pixels_moves_both_ways_about_the_middle(shape):
    still = np.asarray(shape(jnp.float32(0.0), 20, 30))
    np.testing.assert_allclose(still, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    there, back = (np.asarray(shape(jnp.float32(m), 20, 30)) for m in (0.5, -0.5))
    middle = np.array([9.5, 14.5, 1.0])
    np.testing.assert_allclose(there @ middle + back @ middle, 2 * middle[:2], rtol=1e-5)
    assert np.abs(there - still).max() > 0.1


def test_each_image_by_its_own_key_and_evaluation_alone():
    images = jnp.asarray(np.stack([PIXELS] * 64))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(64))
    augment = RandAugment(num_ops=1, magnitude=15)
    assert augment({"image": images}, None)["image"] is images
    compiled = jax.jit(augment)
    found = np.asarray(compiled({"image": images}, keys)["image"])
    np.testing.assert_array_equal(found[::-1], compiled({"image": images}, keys[::-1])["image"])
    assert len({image.tobytes() for image in found}) > 14  # fourteen operations, most of two signs
    assert (found == PIXELS).all((1, 2, 3)).sum() in range(1, 20)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.clip(np.round(found), 0, 255))


@pytest.mark.parametrize("settings", [{"num_ops": 0}, {"magnitude": 31}, {"magnitude": -1}])
def test_settings_that_mean_nothing(settings):
    with pytest.raises(UserError, match=r"num_ops >= 1 and a magnitude in 0\.\.30"):
        RandAugment(**settings)
