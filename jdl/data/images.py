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
