"""Image folders, labeled by one folder per class or by a CSV file."""

import concurrent.futures
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jdl.data.base import Data, Example, Source
from jdl.data.files import column_index, decode_image, read_csv
from jdl.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files that are images; others are left alone."""

SPLITS = ("train", "validation", "test")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Images by path with their labels, decoded on access."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    mode: str  # Pillow mode

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """`image` (height, width, channels) uint8 and `label`."""
        image = decode_image(self.paths[index], self.mode)
        return {"image": image, "label": np.int32(self.labels[index])}

    def digest(self) -> str:
        """SHA-256 of the files and their labels."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path.name} {label}".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Data):
    """Image files: `image` (height, width, channels) uint8 and `label` () int32.

    `path` has one folder per class, or `train`, `validation` and `test` folders that each do. With
    `labels_file`, images may be anywhere below `path`. Labels number the sorted class names. Images
    of different sizes need a `Resize` transform.
    """

    path: str = field(kw_only=False)  # the folder
    labels_file: str | None = None  # CSV file with a row per image
    file_column: str = "file"  # its column of paths below `path`
    label_column: str = "label"  # its column of classes
    mode: Literal["RGB", "L"] = "RGB"  # color, or one channel of gray
    max_unreadable: int = 10  # unreadable images to warn of and skip; one more is an error

    locations = ("path", "labels_file")

    def load(self) -> dict[str, Source]:
        """Returns the splits with a folder, else `train`.

        Raises:
          UserError: there are no images, fewer than two classes, or too many images are unreadable.
        """
        found = self._found()
        bad = self._unreadable(tuple(path for files in found.values() for path, _ in files))
        number = {label: index for index, label in enumerate(_classes(found))}
        return {
            split: ImageFiles(
                tuple(path for path, _ in files if path not in bad),
                tuple(number[label] for path, label in files if path not in bad),
                self.mode,
            )
            for split, files in found.items()
        }

    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(_classes(self._found()))

    def full_name(self) -> str:
        """The folder's name."""
        return Path(self.path).expanduser().name

    def _found(self) -> dict[str, list[tuple[Path, str]]]:
        """Returns image files with their class, by split."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} is no folder")
        found = {"train": self._listed(root)} if self.labels_file else self._split(root)
        classes = _classes(found)
        if len(classes) < 2:
            raise UserError(
                f"{root} holds images of {len(classes)} classes, where two are needed: one folder "
                f"a class with files such as {', '.join(SUFFIXES[:3])}"
            )
        return found

    def _split(self, root: Path) -> dict[str, list[tuple[Path, str]]]:
        """Returns image files with their folder's name, by split."""
        splits = [name for name in SPLITS if (root / name).is_dir()]
        if "train" not in splits:
            return {"train": list(_images(root))}
        return {name: list(_images(root / name)) for name in splits}

    def _listed(self, root: Path) -> list[tuple[Path, str]]:
        """Returns image files with their labels from the CSV file."""
        header, rows = read_csv(str(self.labels_file))
        file, label = (
            column_index(str(self.labels_file), header, name)
            for name in (self.file_column, self.label_column)
        )
        for number, row in enumerate(rows, start=1):
            if not row[label]:
                raise UserError(f"{self.labels_file}: row {number} has no label ({row[file]})")
            if not (root / row[file]).is_file():
                raise UserError(
                    f"{self.labels_file}: row {number} names {row[file]}, not in {root}"
                )
        return [(root / row[file], row[label]) for row in rows]

    def _unreadable(self, paths: Sequence[Path]) -> frozenset[Path]:
        found = unreadable(tuple(paths), self.mode)
        if len(found) > self.max_unreadable:
            raise UserError(
                f"{len(found)} of {len(paths)} images cannot be read, more than "
                f"data.max_unreadable = {self.max_unreadable}: {next(iter(found.values()))}"
            )
        for said in found.values():
            _log.warning("left out: %s", said)
        return frozenset(found)


@functools.lru_cache(maxsize=4)
def unreadable(paths: tuple[Path, ...], mode: str) -> Mapping[Path, str]:
    """Returns the images that cannot be decoded, with the reasons."""

    def look(path: Path) -> str:
        try:
            decode_image(path, mode)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        said = dict(zip(paths, pool.map(look, paths), strict=True))
    return {path: reason for path, reason in said.items() if reason}


def _images(root: Path) -> list[tuple[Path, str]]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return [
        (path, folder.name)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _classes(found: Mapping[str, Sequence[tuple[Path, str]]]) -> list[str]:
    return sorted({label for files in found.values() for _, label in files})
