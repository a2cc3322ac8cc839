"""Sounds in files, by libsndfile, brought to one channel and rate."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from jdl.errors import UserError, first_line, install_command

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
"""Of the files that are taken for sounds in a folder."""

STREAMED = (0x7FFFFFFF, 0xFFFFFFFF)
"""Lengths that programs leave in the header of a WAV file that they write into a pipe."""

SHORTEST = 0.02
"""Seconds of a sound; a shorter one has hardly a frame to make spectra of."""

LONGEST_PAGE = 27 + 255 + 255 * 255
"""Bytes of a page of an OGG file, at most."""


def read_audio(
    path: str | Path, sample_rate: int | None = None, channel: int | None = None
) -> tuple[np.ndarray, int]:
    """Reads a sound as float32 samples from -1 to 1, of 8 to 32 bits or floats.

    A WAV file whose header has no length, as from a pipe, is read to its end.

    Args:
      path: WAV, FLAC, OGG, MP3 or AIFF.
      sample_rate: resampled to this; None: as it is.
      channel: from 0; None: the mean of all.

    Returns:
      The samples (samples,) and their rate.

    Raises:
      UserError: soundfile or soxr is missing; the file cannot be read, is cut short, has a header
        with a wrong length, holds no samples or values that are no numbers; it has no such channel,
        or its channels cancel each other.
    """
    file, library = Path(path).expanduser(), _library("soundfile")
    try:
        _check_length(file)
        found, rate = library.read(str(file), dtype="float32", always_2d=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error
    except RuntimeError as error:
        reason = first_line(error).rpartition(": ")[2].rstrip(".")
        raise UserError(
            f"{file} cannot be read as a sound ({reason}): copy it again, or convert it to WAV"
        ) from error
    if not len(found):
        raise UserError(f"{file} holds no samples: remove it, or record it again")
    if not np.isfinite(found).all():
        raise UserError(f"{file} holds samples that are no numbers: write it again")
    samples = _one_channel(file, found, channel)
    wanted = rate if sample_rate is None else sample_rate
    return resample(samples, rate, wanted), wanted


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resamples a sound (samples,) float32 by soxr, in its high quality.

    Raises:
      UserError: soxr is missing.
    """
    if rate == new_rate:
        return samples
    return _library("soxr").resample(samples, rate, new_rate)


def describe_faults(samples: np.ndarray, rate: int) -> str:
    """Returns what makes a sound a poor one: `silent`, `clipped (12 % of samples)`, `short (5 ms)`.

    Otherwise ''. Of samples as they were recorded: resampling hides what was clipped.
    """
    peak = np.abs(samples).max(initial=0)
    if peak == 0:
        return "silent"
    if len(samples) < SHORTEST * rate:
        return f"short ({1000 * len(samples) / rate:.2g} ms)"
    # Three samples in a row at the extreme: a sine of full scale has fewer.
    top = np.abs(samples) >= 0.9999 * peak
    runs = top[2:] & top[1:-1] & top[:-2]
    share = runs.mean() if len(runs) else 0.0
    return f"clipped ({100 * share:.2g} % of samples)" if share > 1e-3 and peak > 0.5 else ""


def _one_channel(file: Path, samples: np.ndarray, channel: int | None) -> np.ndarray:
    """Returns one channel of samples (samples, channels), or their mean."""
    channels = samples.shape[1]
    if channel is not None:
        if not 0 <= channel < channels:
            raise UserError(f"{file} has {channels} channels, numbered from 0, and no {channel}")
        return np.ascontiguousarray(samples[:, channel])
    mean = samples.mean(1, dtype=np.float32)
    if channels > 1 and np.square(samples).mean() > 1e3 * np.square(mean).mean():
        raise UserError(
            f"the {channels} channels of {file} cancel each other in their mean: choose one of "
            f"them, from 0, with data.channel"
        )
    return mean


def _check_length(file: Path) -> None:
    """Raises a UserError if a file is empty, or its sound longer or shorter than it promises.

    Of WAV and OGG files libsndfile would read what there is, and of some bytes that are none.
    """
    with file.open("rb") as stream:
        head, end = stream.read(12), stream.seek(0, 2)
        if not end:
            raise UserError(f"{file} is empty: remove it, or record it again")
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            _check_wav(file, stream, end)
        if head[:4] == b"OggS" and not _is_whole_ogg(stream, end):
            raise UserError(f"{file} is cut short: its last page is missing: copy it again")


def _check_wav(file: Path, stream: Any, end: int) -> None:
    """Raises a UserError if the header of a WAV file has a wrong length."""
    place = 12
    while place + 8 <= end:
        stream.seek(place)
        name, size = struct.unpack("<4sI", stream.read(8))
        left = end - place - 8
        if name != b"data":
            place += 8 + size + size % 2
            continue
        if size in STREAMED or size == left:
            return
        if size > left:
            raise UserError(
                f"{file} is cut short: its header promises {size} bytes of sound, and {left} are "
                f"left: copy it again"
            )
        if not _follows(stream, place + 8 + size, end):
            raise UserError(
                f"{file} has a wrong length in its header: {size} bytes of sound, where {left} "
                f"follow: write it again"
            )
        return


def _is_whole_ogg(stream: Any, end: int) -> bool:
    """Whether a file ends with a page that is marked as the last (RFC 3533, section 6)."""
    stream.seek(max(end - LONGEST_PAGE, 0))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return False
    size = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return len(page) >= size and bool(page[5] & 4)


def _follows(stream: Any, place: int, end: int) -> bool:
    """Whether the rest of a file after `place` consists of chunks, or of a byte of padding."""
    place += place % 2
    while place + 8 <= end:
        stream.seek(place)
        name, size = struct.unpack("<4sI", stream.read(8))
        if not (name.isascii() and name.decode("ascii").isprintable()):
            return False
        place += 8 + size + size % 2
    return end <= place <= end + 1 or end - place < 2


def _library(name: str) -> Any:
    """Imports `soundfile` or `soxr`."""
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: without the shared library
        raise UserError(
            f"reading sounds needs the package {name}: {install_command('audio')}"
        ) from error
