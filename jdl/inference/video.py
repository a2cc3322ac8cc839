"""Frames of video files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jdl.errors import UserError, first_line, install_command

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv")
"""Of the files that are videos."""


def is_video(path: Path) -> bool:
    """Returns whether a file is a video, by its name."""
    return path.suffix.lower() in SUFFIXES


def read_frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the frames of a video, upright, with their time in seconds.

    Yields:
      The time, and pixels (height, width, 3) uint8.

    Raises:
      UserError: the package `av` is missing, or the file is no video, or is damaged.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise UserError(f"{path}: reading videos needs {install_command('video')}") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no frames: it holds sound alone")
            for frame in container.decode(video=0):
                pixels = frame.to_ndarray(format="rgb24")
                turned = np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90))
                yield float(frame.time or 0.0), np.ascontiguousarray(turned)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path} is no readable video: {first_line(error)}") from error


def write_ppm(pixels: np.ndarray, path: Path) -> None:
    """Writes pixels (height, width, 3) uint8 as a file that every reader of images takes."""
    height, width, _ = pixels.shape
    path.write_bytes(f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes())
