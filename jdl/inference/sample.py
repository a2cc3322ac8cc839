"""Writes samples of a run, one file for each."""

from collections.abc import Iterator
from pathlib import Path

from jdl.errors import UserError
from jdl.media import Media


def write_samples(media: Media, folder: Path) -> Iterator[Path]:
    """Writes each sample into a file of its own, numbered from 0.

    Args:
      media: the samples (`Run.sample`).
      folder: created if it does not exist; files of the same names are replaced.

    Yields:
      The files.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, one in enumerate(media.each()):
            yield one.write(folder / f"{index:05d}")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
