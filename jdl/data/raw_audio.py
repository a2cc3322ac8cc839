"""Reader of the originals of the Free Spoken Digit Dataset."""

import io
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jdl.data.archives import find_archive, read_members
from jdl.data.raw import Example, Splits
from jdl.errors import UserError

FOLDER = "free-spoken-digit-dataset-1.0.9"


def read_spoken_digit(raw: Path) -> Splits:
    """Reads the Free Spoken Digit Dataset (Jackson et al., 2018).

    Args:
      raw: `v1.0.9.tar.gz`, the extracted folder, or the parent of either.

    Returns:
      `train` of `audio` (samples,) int16 at 8 kHz, `audio/filename` and `label`.

    Raises:
      UserError: neither is there, or a recording is not of 16 bits and one channel at 8 kHz.
    """
    source = find_archive(raw, "v1.0.9.tar.gz", FOLDER, inside="recordings")
    return {"train": _recordings(source)}


def _recordings(source: Path) -> Iterator[tuple[str, Example | None]]:
    pattern = re.compile(rf"{re.escape(FOLDER)}/recordings/((\d)_[a-z]+_\d+\.wav)")
    for match, data in read_members(source, FOLDER, pattern):
        try:
            with wave.open(io.BytesIO(data)) as file:
                form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        except (wave.Error, EOFError, ValueError) as error:
            raise UserError(f"{match[1]} in {source} cannot be read: {error}") from error
        if form != (1, 2, 8000):
            raise UserError(
                f"{match[1]} in {source} has {form[0]} channels of {8 * form[1]} bits at {form[2]} "
                f"Hz, where the recordings have one of 16 bits at 8000 Hz: get the archive again"
            )
        yield match[1], {"audio": samples, "audio/filename": match[1], "label": int(match[2])}
