"""Image files as arrays of bytes, whatever their format, depth, palette or orientation."""

from pathlib import Path

import numpy as np

from jdl.errors import UserError, first_line

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Of Pillow, by channels."""

KINDS = {"I": "32-bit integers", "F": "floats", "LAB": "CIELAB"}
"""Pillow modes that are refused: neither their range nor their colors are certain."""


class UnreadableImage(UserError):
    """A file that is not an image, or is damaged."""


def decode_image(path: Path, mode: str) -> np.ndarray:
    """Returns an image file as (height, width, channels) uint8.

    It is turned upright by its EXIF orientation. Gray values of 16 bits are scaled by 255 / 65535.
    Transparent pixels are blended with white unless the mode has an alpha channel. Of several
    frames or pages the first is read.

    Args:
      path: the file.
      mode: Pillow mode, such as `RGB` or `L`.

    Raises:
      UnreadableImage: it is not an image, or damaged.
      UserError: its pixels have no known range, such as floats.
    """
    return read_image(path, mode)[0]


def read_image(path: Path, mode: str) -> tuple[np.ndarray, int]:
    """Returns the image as `decode_image` does, and the number of frames of its file."""
    from PIL import Image, ImageOps

    try:
        # By name, Pillow maps uncompressed TIFFs to memory, and then scrambles the rotated ones.
        with path.open("rb") as file, Image.open(file) as image:
            # The frames behind the first of an MPO are the same photograph for other screens.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            depth = image.format in ("PPM", "PNG") and image.mode == "I"
            if image.mode in KINDS and not depth:
                raise UserError(
                    f"{path} has pixels of {KINDS[image.mode]}, which cannot be scaled to bytes "
                    f"without knowing their range: save it with 8 or 16 bits per channel"
                )
            upright = ImageOps.exif_transpose(image)
            if depth or upright.mode.startswith("I;16"):
                values = np.asarray(upright).astype(np.uint32)
                upright = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            if upright.has_transparency_data and mode != "RGBA":
                pixels = upright.convert("RGBA")
                upright = Image.new("RGBA", pixels.size, "white")
                upright.alpha_composite(pixels)
            pixels = np.asarray(upright.convert(mode))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise UnreadableImage(f"{path} is no readable image: {first_line(error)}") from error
    return (pixels[..., None] if pixels.ndim == 2 else pixels), frames


def image_size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image file as `decode_image` turns it, from its header.

    Raises:
      UnreadableImage: it is not an image.
    """
    from PIL import ExifTags, Image

    try:
        with path.open("rb") as file, Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            width, height = image.size
            return (width, height) if turned else (height, width)
    except Exception as error:
        raise UnreadableImage(f"{path} is no readable image: {first_line(error)}") from error


def decode_mask(path: Path) -> np.ndarray:
    """Returns the ids in a mask file, (height, width): the palette's indices, or gray values.

    Raises:
      UnreadableImage: it is not an image, or damaged.
      UserError: it has colors, of which no id is known.
    """
    from PIL import Image

    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:
        raise UnreadableImage(f"{path} is no readable image: {first_line(error)}") from error
    if mode not in ("1", "L", "P", "I;16", "I"):
        raise UserError(
            f"{path} is an image of mode {mode}, where a mask has one class id per pixel: save it "
            f"as an indexed or gray PNG"
        )
    return pixels.astype(np.uint8 if mode in ("1", "L", "P") else np.int32)


def encode_mask(path: Path, ids: np.ndarray) -> None:
    """Writes ids (height, width) of 0 to 255 as an indexed PNG, each in a color of its own.

    Raises:
      UserError: an id is outside of that range.
    """
    from PIL import Image

    if ids.min() < 0 or ids.max() > 255:
        raise UserError(f"{path}: an indexed PNG holds ids from 0 to 255, not {ids.max()}")
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(palette().ravel().tolist())
    picture.save(path)


def palette() -> np.ndarray:
    """Returns the colors (256, 3) uint8 of Pascal VOC's masks: id 0 is black."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    shift = 7 - np.arange(3)
    channels = [(bits[:, c::3][:, :3] << shift[: bits[:, c::3].shape[1]]).sum(1) for c in range(3)]
    return np.stack(channels, 1).astype(np.uint8)
