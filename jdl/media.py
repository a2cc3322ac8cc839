"""Images, texts and sounds that a run makes, and the files that show them."""

import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jdl.errors import UserError

SMALLEST = 48
"""Pixels of the longer side of an image in a grid; smaller ones are enlarged by a whole factor."""

COLORS = np.array(
    [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (127, 127, 127),
    ],
    np.uint8,
)  # fmt: skip
"""RGB of classes, repeated after the last (Tableau 10)."""


@runtime_checkable
class Media(Protocol):
    """Several examples of one kind."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def each(self) -> Iterator["Media"]:
        """Yields the examples one by one."""
        ...

    def write(self, path: Path) -> Path:
        """Writes all examples into one file, and returns it: `path` with the suffix of the kind."""
        ...


@dataclass(frozen=True)
class Images:
    """Images; of several, a file has a square grid.

    Attributes:
      pixels: (images, height, width), or (images, height, width, 1, 3 or 4); uint8, bool, or floats
        from 0 to 1, beyond which they are cut off.
    """

    pixels: np.ndarray

    def __post_init__(self) -> None:
        shape = np.shape(self.pixels)
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
            raise UserError(
                f"images have the shape (images, height, width) or (images, height, width, 1, 3 or "
                f"4), not {shape}"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def each(self) -> Iterator["Images"]:
        """Yields the images one by one."""
        return (Images(self.pixels[i : i + 1]) for i in range(len(self)))

    def write(self, path: Path) -> Path:
        """Writes a PNG file."""
        from PIL import Image

        pixels = grid(to_bytes(self.pixels)) if len(self) > 1 else to_bytes(self.pixels)[0]
        path = path.with_name(f"{path.name}.png")
        draft = path.with_name(f".{path.name}.tmp")
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(draft, "PNG")
        draft.replace(path)
        return path


@dataclass(frozen=True)
class Texts:
    """Texts; in a file they are divided by lines of dashes."""

    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def each(self) -> Iterator["Texts"]:
        """Yields the texts one by one."""
        return (Texts((text,)) for text in self.texts)

    def write(self, path: Path) -> Path:
        """Writes a UTF-8 file."""
        path = path.with_name(f"{path.name}.txt")
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_text(f"\n{'-' * 15}\n".join(self.texts) + "\n", encoding="utf-8")
        draft.replace(path)
        return path


@dataclass(frozen=True)
class Sounds:
    """Sounds of one channel; in a file, a quarter of a second of silence divides them.

    Attributes:
      waves: (sounds, samples), floats from -1 to 1, beyond which they are cut off.
      sample_rate: samples per second.
    """

    waves: np.ndarray
    sample_rate: int

    def __post_init__(self) -> None:
        if np.ndim(self.waves) != 2:
            raise UserError(f"sounds have the shape (sounds, samples), not {np.shape(self.waves)}")

    def __len__(self) -> int:
        return len(self.waves)

    def each(self) -> Iterator["Sounds"]:
        """Yields the sounds one by one."""
        return (Sounds(self.waves[i : i + 1], self.sample_rate) for i in range(len(self)))

    def write(self, path: Path) -> Path:
        """Writes a WAV file of 16 bits."""
        waves = np.nan_to_num(np.asarray(self.waves, np.float32)).clip(-1, 1)
        silence = np.zeros((len(waves), self.sample_rate // 4), np.float32)
        joined = np.concatenate([waves, silence], 1).ravel()[: -silence.shape[1] or None]
        path = path.with_name(f"{path.name}.wav")
        draft = path.with_name(f".{path.name}.tmp")
        with wave.open(str(draft), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sample_rate)
            file.writeframes((joined * 32767).round().astype("<i2").tobytes())
        draft.replace(path)
        return path


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Returns images (images, height, width, channels) uint8; see `Images`."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "bf":
        raise UserError(
            f"images are uint8, bool or floats from 0 to 1, not {pixels.dtype}: convert them"
        )
    values = np.nan_to_num(pixels.astype(np.float32)).clip(0, 1)
    return (values * 255).round().astype(np.uint8)


def grid(pixels: np.ndarray) -> np.ndarray:
    """Returns images (images, height, width, channels) uint8 as one, row by row, with a border."""
    count, height, width, channels = pixels.shape
    scale = max(1, SMALLEST // max(height, width))
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    empty = np.full((rows * columns - count, *pixels.shape[1:]), 255, np.uint8)
    cells = np.pad(
        np.concatenate([pixels, empty]), ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255
    )
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return cells.reshape(rows * (height * scale + 2), -1, channels)[:-2, :-2]


def overlay(
    images: np.ndarray,
    masks: np.ndarray | None = None,
    boxes: Sequence[np.ndarray] | None = None,
    labels: Sequence[np.ndarray] | None = None,
    names: Sequence[str] = (),
    background: int | None = 0,
) -> np.ndarray:
    """Draws masks and boxes over images, in a color for each class.

    Args:
      images: see `Images`.
      masks: (images, height, width) integers, the class of each pixel.
      boxes: of each image, (boxes, 4): x0, y0, x1, y1 in pixels.
      labels: of each image the class of each box, (boxes,); None: all of class 0.
      names: of the classes, written beside the boxes.
      background: class that is not drawn; None: all are.

    Returns:
      (images, height, width, 3) uint8.
    """
    pixels = to_bytes(images)[..., :3]
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).copy()
    if masks is not None:
        masks = np.asarray(masks)
        painted = COLORS[masks % len(COLORS)]
        drawn = np.ones(masks.shape, bool) if background is None else masks != background
        pixels[drawn] = (pixels[drawn].astype(np.uint16) + painted[drawn]) // 2
    for index, found in enumerate(boxes if boxes is not None else ()):
        classes = np.zeros(len(found), int) if labels is None else np.asarray(labels[index])
        pixels[index] = _with_boxes(pixels[index], np.asarray(found), classes, names)
    return pixels


def _with_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), label in zip(boxes.tolist(), classes.tolist(), strict=True):
        color = tuple(COLORS[label % len(COLORS)].tolist())
        # Corners of a box are pixel edges, and Pillow takes pixel indices, both ends included.
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color)
        if names:
            draw.text((x0 + 2, y0 + 1), str(names[label]), fill=color)
    return np.asarray(canvas)
