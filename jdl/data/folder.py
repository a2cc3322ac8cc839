"""Image folders, labeled by one folder per class or by a CSV file."""

import concurrent.futures
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jdl.data.base import Data, check_label_columns
from jdl.data.conversion import binary_label, hot_rows
from jdl.data.fingerprints import hash_files
from jdl.data.images import UnreadableImage, decode_image, read_image
from jdl.data.labeled_files import (
    SUFFIXES,
    Labeled,
    classes_of,
    find_splits,
    read_listed,
    some_paths,
    split_label,
    summarize,
)
from jdl.data.log import warn_once
from jdl.data.sources import Example, Source
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class ImageFiles:
    """Images by path with their labels, decoded on access."""

    paths: tuple[Path, ...]
    labels: tuple[Any, ...]  # a class, or 0 or 1 for each class
    mode: str  # Pillow mode
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """`image` (height, width, channels) uint8 and `label`."""
        image = decode_image(self.paths[index], self.mode)
        return {"image": image, "label": np.int32(self.labels[index])}

    def array(self, name: str) -> np.ndarray | None:
        """The labels, or the groups under any other name."""
        return np.array(self.labels if name == "label" else self.groups)

    def digest(self) -> str:
        """SHA-256 of the files and their labels."""
        files = zip(self.paths, self.labels, strict=True)
        return hash_files([(path, f"{path.name} {label}") for path, label in files])


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Data):
    """Image files: `image` (height, width, channels) uint8 and `label` () int32.

    With `label_delimiter` an image has any number of classes, as in a folder `cat+dog`, and so it
    has with several columns of labels; `label` is then (classes,) int32, 0 or 1 for each.

    `path` has one folder per class, or `train`, `validation` (`val`, `valid`) and `test` folders
    that each do. With `labels_file`, images may be anywhere below `path`. Labels number the sorted
    class names. Hidden files and folders are ignored. A summary of counts, and of all that was left
    out, is logged once. Images of different sizes need a `Resize` transform.
    """

    path: str = field(kw_only=False)  # the folder
    labels_file: str | None = None  # CSV file with a row per image
    file_column: str = "file"  # its column of paths below `path`
    label_column: str | tuple[str, ...] = "label"  # its column of classes, or one for each: 0 or 1
    group: str | None = None  # its column of which no value is in two splits, such as a patient
    label_delimiter: str | None = None  # between the classes of one image; None: it has one class
    mode: Literal["RGB", "L"] = "RGB"  # color, or one channel of gray
    max_unreadable: int = 10  # unreadable images to warn of and skip; one more is an error
    stratify: bool | None = None  # hold out the same share of each class; None: unless grouped

    locations = ("path", "labels_file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_delimiter is not None and not self.label_delimiter.strip():
            raise UserError("data.label_delimiter is a mark such as '+' or ';', not blank")
        if self.group and not self.labels_file:
            raise UserError("data.group is a column of data.labels_file: set that too")
        if not isinstance(self.label_column, str):
            check_label_columns(self, "label_column")
            if not self.labels_file:
                raise UserError("data.label_column is of data.labels_file: set that too")

    def load(self) -> dict[str, Source]:
        """Returns the splits with a folder, else `train`.

        Raises:
          UserError: there are no images, fewer than two classes, or too many images are unreadable.
        """
        found, notes = self._found()
        paths = tuple(each.path for files in found.values() for each in files)
        bad, more = self._unreadable(paths)
        all_classes = self._classes(found)
        classes = self.fitted_values["classes"] if self.fitted_values else all_classes
        if new := sorted(set(all_classes) - set(classes)):
            raise UserError(
                f"{self.path} holds the class {new[0]!r}, which the run was not trained on (it "
                f"knows {', '.join(classes)})"
            )
        number = {label: index for index, label in enumerate(classes)}
        kept = {
            name: [each for each in files if each.path not in bad] for name, files in found.items()
        }
        warn_once(summarize(self.path, kept, (*notes, *more)))
        return {
            split: ImageFiles(
                tuple(each.path for each in files),
                self._numbered(files, number),
                self.mode,
                tuple(each.group for each in files),
            )
            for split, files in kept.items()
        }

    def fit(self) -> dict[str, Json]:
        """Returns how images are read, and `classes`."""
        return {**super().fit(), "classes": self._classes(self._found()[0])}

    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        known = self.fitted_values
        if known:
            return tuple(known["classes"])
        return tuple(self._classes(self._found()[0]))

    def full_name(self) -> str:
        """The folder's name."""
        return Path(self.path).expanduser().name

    def _numbered(self, files: Sequence[Labeled], number: Mapping[str, int]) -> tuple[Any, ...]:
        """Returns the label of each file."""
        if self.label_delimiter is None and isinstance(self.label_column, str):
            return tuple(number[str(each.label)] for each in files)
        rows = [split_label(each.label, self.label_delimiter) for each in files]
        return tuple(map(tuple, hot_rows(rows, list(number), self.path).tolist()))

    def _classes(self, found: Mapping[str, Sequence[Labeled]]) -> list[str]:
        """Returns the class names in the order of their numbers."""
        if isinstance(self.label_column, str):
            return classes_of(found, self.label_delimiter)
        return list(self.label_column)

    def _found(self) -> tuple[dict[str, list[Labeled]], list[str]]:
        """Returns image files with their class, by split, and what was noticed on the way."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} is no folder")
        notes: list[str] = []
        found = {"train": self._listed(root)} if self.labels_file else find_splits(root, notes)
        classes = self._classes(found)
        if len(classes) < 2:
            raise UserError(
                f"{root} holds images of {len(classes)} classes, where two are needed: one folder "
                f"a class with files such as {', '.join(SUFFIXES[:2])}"
                f"{''.join('; ' + note for note in notes)}"
            )
        return found, notes

    def _listed(self, root: Path) -> list[Labeled]:
        """Returns image files with their labels from the CSV file."""
        column, table, files = self.label_column, str(self.labels_file), []
        labels = (column,) if isinstance(column, str) else column
        others = (*labels, *([self.group] if self.group else []))
        for number, path, fields in read_listed(root, table, self.file_column, others):
            label, group = self._label(fields, number), fields[self.group] if self.group else ""
            if self.group and not group:
                file = fields[self.file_column]
                raise UserError(f"{table}: row {number} has no {self.group} ({file})")
            files.append(Labeled(path, label, group))
        return files

    def _label(self, fields: Mapping[str, str], row: int) -> str | tuple[str, ...]:
        """Returns what a row of the CSV file says of its image: a class, or several."""
        file, names = self.labels_file, self.label_column
        if isinstance(names, str):
            if not fields[names] and not self.label_delimiter:
                raise UserError(f"{file}: row {row} has no label ({fields[self.file_column]})")
            return fields[names]
        return tuple(n for n in names if binary_label(fields[n], f"{file}: column {n!r}", row))

    def _unreadable(self, paths: tuple[Path, ...]) -> tuple[frozenset[Path], list[str]]:
        """Returns the unreadable images, and notes about the others."""
        found, frames = inspect(paths, self.mode)
        if len(found) > self.max_unreadable:
            raise UserError(
                f"{len(found)} of {len(paths)} images cannot be read, more than "
                f"data.max_unreadable = {self.max_unreadable}: {next(iter(found.values()))}"
            )
        for reason in found.values():
            warn_once(f"left out: {reason}")
        note = f"several frames or pages, of which the first is read: {some_paths(frames)}"
        return frozenset(found), [note] if frames else []


@functools.lru_cache(maxsize=4)
def inspect(paths: tuple[Path, ...], mode: str) -> tuple[Mapping[Path, str], Sequence[Path]]:
    """Returns the images that cannot be decoded, with the reasons, and those of several frames.

    Raises:
      UserError: the pixels of an image are of a kind that is not supported.
    """

    def look(path: Path) -> tuple[str, int]:
        try:
            return "", read_image(path, mode)[1]
        except UnreadableImage as error:
            return str(error), 1

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(zip(paths, pool.map(look, paths), strict=True))
    reasons = {path: reason for path, (reason, _) in found if reason}
    return reasons, tuple(path for path, (_, frames) in found if frames > 1)
