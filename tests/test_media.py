"""Grids, texts, sounds and overlays, read back by other libraries."""

import wave

import numpy as np
import pytest
from PIL import Image

from jdl.errors import UserError
from jdl.media import COLORS, Images, Sounds, Texts, overlay


def test_a_grid_holds_every_image_enlarged_and_in_order(tmp_path):
    pixels = np.linspace(0, 1, 5 * 24 * 20 * 3).reshape(5, 24, 20, 3)
    path = Images(pixels).write(tmp_path / "step-7.5")
    assert path.name == "step-7.5.png"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = np.asarray(Image.open(path))
    assert found.shape == (2 * 48 + 2, 3 * 40 + 2 * 2, 3)
    for index in range(5):
        top, left = index // 3 * 50, index % 3 * 42
        cell = found[top : top + 48 : 2, left : left + 40 : 2]
        np.testing.assert_array_equal(cell, np.round(pixels[index] * 255))
        np.testing.assert_array_equal(cell, found[top + 1 : top + 48 : 2, left + 1 : left + 40 : 2])
    assert (found[50:, 84:] == 255).all()
    assert (found[48:50] == 255).all()


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 3, 4, 1), (1, 3, 4, 4)])
def test_one_image_keeps_its_size_and_values_beyond_the_range_are_cut_off(shape, tmp_path):
    pixels = np.zeros(shape, np.float32)
    pixels[0, 0] = 7
    pixels[0, 1] = np.nan
    found = np.asarray(Image.open(Images(pixels).write(tmp_path / "one")))
    assert found.shape[:2] == (3, 4)
    assert (found[0] == 255).all()
    assert (found[1:] == 0).all()


def test_texts_and_sounds_are_read_back(tmp_path):
    assert Texts(("ä", "b")).write(tmp_path / "a").read_text() == f"ä\n{'-' * 15}\nb\n"
    waves = np.sin(np.arange(2 * 800).reshape(2, 800) / 9)
    waves[1, -1] = 2
    with wave.open(str(Sounds(waves, 400).write(tmp_path / "b"))) as file:
        assert (file.getframerate(), file.getnchannels()) == (400, 1)
        found = np.frombuffer(file.readframes(-1), "<i2") / 32767
    assert len(found) == 800 + 100 + 800
    np.testing.assert_allclose(found[:800], waves[0], atol=1e-4)
    np.testing.assert_array_equal(found[800:900], 0)
    np.testing.assert_allclose(found[900:], waves[1].clip(-1, 1), atol=1e-4)
    assert [len(each) for each in Sounds(waves, 400).each()] == [1, 1]


def test_a_box_and_a_mask_have_the_color_of_their_class():
    images = np.zeros((2, 8, 10, 1), np.uint8)
    masks = np.zeros((2, 8, 10), np.int32)
    masks[0, 2:4, 3:5] = 2
    boxes = [np.array([[1.0, 2.0, 6.0, 5.0]]), np.zeros((0, 4))]
    found = overlay(images, masks, boxes, [np.array([1]), np.zeros(0, int)])
    assert found.shape == (2, 8, 10, 3)
    assert not found[1].any()
    edge = np.zeros((8, 10), bool)
    edge[2:5, 1:6] = True
    edge[3:4, 2:5] = False
    assert (found[0][edge] == COLORS[1]).all()
    assert (found[0, 3, 3:5] == COLORS[2] // 2).all()
    assert not found[0][~edge & (masks[0] == 0)].any()


def test_what_is_no_image_is_refused():
    with pytest.raises(UserError, match=r"height, width, 1, 3 or 4\), not \(2, 3, 4, 2\)"):
        Images(np.zeros((2, 3, 4, 2)))
    with pytest.raises(UserError, match="uint8, bool or floats from 0 to 1, not int64"):
        overlay(np.zeros((1, 2, 2), int))
    with pytest.raises(UserError, match=r"shape \(sounds, samples\), not \(3,\)"):
        Sounds(np.zeros(3), 8000)
