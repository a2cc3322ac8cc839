"""Writes samples of a run, one file for each, of a class given by its name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jdl.errors import UserError, nearest
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


def class_number(label: str, names: Sequence[str]) -> int:
    """Returns the number of a class, given by its name or number.

    Args:
      label: name or number.
      names: of the classes; empty if they have none.

    Raises:
      UserError: there is no such class.
    """
    if label in names:
        return list(names).index(label)
    if not label.isdecimal():
        known = f" (there are {', '.join(names)})" if names else ": name it by its number"
        raise UserError(f"there is no class {label!r}{known}{nearest(label, names)}")
    return int(label)
