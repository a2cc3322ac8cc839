"""Images of every kind become the bytes that one sees, or are refused by name."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jdl.data.images import UnreadableImage, decode_image, read_image
from jdl.errors import UserError

RAMP16 = np.linspace(0, 65535, 8).astype(np.uint16)[None].repeat(2, 0)
RAMP8 = np.round(RAMP16 / 257).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(RAMP16).save(tmp_path / "a.png")
    Image.fromarray(RAMP16).save(tmp_path / "a.tif")
    Image.fromarray(RAMP16.astype(">u2")).save(tmp_path / "b.tif")
    header = b"P5\n8 2\n65535\n"
    (tmp_path / "a.pgm").write_bytes(header + RAMP16.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "b.tif", "a.pgm"):
        np.testing.assert_array_equal(decode_image(tmp_path / name, "L")[..., 0], RAMP8)
        for channel in range(3):
            rgb = decode_image(tmp_path / name, "RGB")[..., channel]
            np.testing.assert_array_equal(rgb, RAMP8)


def test_other_maxima_are_scaled(tmp_path):
    values = (np.arange(8) * 100).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n8 1\n700\n" + values.tobytes())
    expected = np.round(np.arange(8) * 255 / 7)
    found = decode_image(tmp_path / "a.pgm", "L")[0, :, 0]
    np.testing.assert_allclose(found, expected, atol=1)
    (tmp_path / "b.pgm").write_bytes(b"P5\n4 1\n3\n" + bytes([0, 1, 2, 3]))
    assert decode_image(tmp_path / "b.pgm", "L")[0, :, 0].tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("scale", [1, 1 / 255, 1000])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype, scale, mode):
    Image.fromarray((RAMP16 * scale).astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif has pixels of .* 8 or 16 bits") as caught:
        decode_image(tmp_path / "x.tif", mode)
    assert not isinstance(caught.value, UnreadableImage)  # it is not skipped, but ends the run


UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
"""What turns an image upright, by its EXIF orientation (EXIF 2.32, 4.6.4)."""

TURNED = {key: (16, 32) if key < 5 else (32, 16) for key in UPRIGHT}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # light where the sky and the left are
    upright[8:, :16, 0] = 255
    # What a camera held in another way writes.
    places = UPRIGHT[orientation](np.arange(512).reshape(TURNED[orientation]))
    turned = np.empty((*TURNED[orientation], 3), np.uint8)
    turned.reshape(-1, 3)[places.ravel()] = upright.reshape(-1, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif, **options)
    found = decode_image(path, "RGB").astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 20


def shown(values, alpha):
    """Values over white."""
    return values * (alpha / 255) + 255 * (1 - alpha / 255)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    alpha = np.array([[0, 64, 128, 255]] * 6, np.uint8)
    expected = shown(NOISE, alpha[..., None])
    for suffix in ("png", "tif", "webp"):
        path = tmp_path / f"x.{suffix}"
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        Image.fromarray(np.dstack([NOISE, alpha])).save(path, **options)
        np.testing.assert_allclose(decode_image(path, "RGB"), expected, atol=1)
        luma = expected @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(decode_image(path, "L")[..., 0], luma, atol=2)
        np.testing.assert_array_equal(decode_image(path, "RGBA")[..., 3], alpha)
    Image.fromarray(np.dstack([NOISE[..., 0], alpha]), "LA").save(tmp_path / "g.png")
    grey = decode_image(tmp_path / "g.png", "L")[..., 0]
    np.testing.assert_allclose(grey, shown(NOISE[..., 0], alpha), atol=1)


def png(color_type, samples, depth):
    """A PNG file of one row of samples, of a kind that Pillow does not write."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 2, 1, depth, color_type, 0, 0, 0)
    body = zlib.compress(b"\0" + np.asarray(samples, ">u2" if depth == 16 else "u1").tobytes())
    parts = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_png_of_all_depths(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(2, [0, 30000, 65535, 257, 514, 40000], 16))
    np.testing.assert_allclose(decode_image(path, "RGB")[0], [[0, 117, 255], [1, 2, 156]], atol=1)
    path.write_bytes(png(4, [30000, 65535, 0, 0], 16))
    np.testing.assert_allclose(decode_image(path, "L")[0, :, 0], [117, 255], atol=1)
    path.write_bytes(png(0, [0b01100000], 2))
    assert decode_image(path, "L")[0, :, 0].tolist() == [85, 170]
    path.write_bytes(png(0, [0x5A], 4))
    assert decode_image(path, "L")[0, :, 0].tolist() == [85, 170]


def test_one_transparent_color_is_white(tmp_path):
    pixels = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=(1, 2, 3))
    assert decode_image(tmp_path / "x.png", "RGB").tolist() == [[[255] * 3, [9] * 3]]
    Image.fromarray(pixels[..., 0]).save(tmp_path / "g.png", transparency=1)
    assert decode_image(tmp_path / "g.png", "L")[0, :, 0].tolist() == [255, 9]


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_are_looked_up(tmp_path, suffix, transparent):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image = image.convert("P") if image.mode != "P" else image
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    transparent = transparent and suffix in ("png", "gif")
    options = {"transparency": 1} if transparent else {}
    image.save(tmp_path / f"x.{suffix}", **options)
    middle = [255] * 3 if transparent else [200, 100, 0]
    found = decode_image(tmp_path / f"x.{suffix}", "RGB").tolist()
    assert found == [[[10, 20, 30], middle, [7, 7, 7]]]


def test_other_color_spaces(tmp_path):
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    Image.fromarray(ink, "CMYK").save(tmp_path / "x.tif")
    found = decode_image(tmp_path / "x.tif", "RGB")[0].tolist()
    assert found == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]
    large = Image.fromarray(ink.repeat(16, 0).repeat(16, 1), "CMYK")
    large.save(tmp_path / "x.jpg", quality=95)
    jpeg = decode_image(tmp_path / "x.jpg", "RGB")[8, 8::16].astype(int)
    np.testing.assert_allclose(jpeg, found, atol=8)
    Image.fromarray(NOISE).convert("YCbCr").save(tmp_path / "y.tif")
    np.testing.assert_allclose(decode_image(tmp_path / "y.tif", "RGB"), NOISE, atol=4)
    Image.fromarray(NOISE).convert("1").save(tmp_path / "b.png")
    assert set(np.unique(decode_image(tmp_path / "b.png", "L"))) <= {0, 255}
    Image.fromarray(NOISE).convert("LAB").save(tmp_path / "lab.tif")
    with pytest.raises(UserError, match=r"lab\.tif has pixels of CIELAB"):
        decode_image(tmp_path / "lab.tif", "RGB")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.fromarray(np.full((6, 4, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    pixels, count = read_image(path, "RGB")
    assert count == 3
    assert pixels.max() <= 2
    frames[0].save(path)
    assert read_image(path, "RGB")[1] == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path, suffix, part):
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UnreadableImage, match=rf"x\.{suffix} is no readable image: .+") as caught:
        decode_image(path, "RGB")
    assert len(str(caught.value).splitlines()) == 1


@st.composite
def pictures(draw):
    """A mode, its pixels, an orientation and a format that keeps them."""
    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]))
    suffixes = {
        "1": ["png", "tif", "bmp"], "L": ["png", "tif", "webp"], "LA": ["png", "tif"],
        "P": ["png", "tif"], "RGB": ["png", "tif", "webp"], "RGBA": ["png", "tif", "webp"],
        "CMYK": ["tif"], "I;16": ["png", "tif"],
    }  # fmt: skip
    suffix = draw(st.sampled_from(suffixes[mode]))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    depth = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode)
    shape = (height, width, depth) if depth else (height, width)
    pixels = generator.integers(0, 65536 if mode == "I;16" else 256, shape)
    return mode, suffix, pixels, draw(st.integers(1, 8)), generator


def colors(mode, pixels, palette):
    """What one sees of pixels: color (height, width, 3) and opacity (height, width, 1)."""
    opaque = np.ones((*pixels.shape[:2], 1))
    if mode == "CMYK":
        return 255 * (1 - pixels[..., :3] / 255) * (1 - pixels[..., 3:] / 255), opaque
    if mode == "P":
        return palette[pixels], opaque
    if mode in ("LA", "RGBA"):
        opaque = pixels[..., -1:] / 255
        pixels = pixels[..., :-1] if mode == "RGBA" else pixels[..., 0]
    if mode == "1":
        pixels = pixels * 255
    if mode == "I;16":
        pixels = pixels / 257
    return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)), opaque


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_generated_images(tmp_path, count):
    @settings(max_examples=count, deadline=None, database=None)
    @given(picture=pictures(), target=st.sampled_from(["L", "RGB"]))
    def check(picture, target):
        mode, suffix, pixels, orientation, generator = picture
        pixels = pixels % 2 if mode == "1" else pixels
        palette = generator.integers(0, 256, (256, 3))
        if mode == "1":
            image = Image.fromarray((pixels * 255).astype(np.uint8)).convert("1")
        elif mode == "P":
            image = Image.frombytes("P", pixels.shape[::-1], pixels.astype(np.uint8).tobytes())
            image.putpalette(palette.astype(np.uint8).tobytes())
        else:
            kind = np.uint16 if mode == "I;16" else np.uint8
            image = Image.fromarray(pixels.astype(kind))
            image = (
                image
                if image.mode == mode
                else image.convert(mode)
                if mode == "L"
                else (Image.frombytes(mode, pixels.shape[1::-1], pixels.astype(kind).tobytes()))
            )
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        if suffix != "bmp":
            options["exif"] = exif
        path = tmp_path / f"x.{suffix}"
        image.save(path, **options)
        color, opaque = colors(mode, pixels, palette)
        seen = color * opaque + 255 * (1 - opaque)
        if suffix != "bmp":
            seen = UPRIGHT[orientation](seen)
        found = decode_image(path, target)
        expected = seen if target == "RGB" else seen @ [[0.299], [0.587], [0.114]]
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, expected, atol=2)

    check()
