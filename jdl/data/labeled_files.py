"""Finds images or sounds below a folder: splits, classes, what a CSV file lists, and the rest."""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jdl.data.files import column_index, read_csv
from jdl.errors import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip
"""Of the files that are images; others are left out, and counted."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders of splits, in lower case."""

SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found",
          "thumbs.db", "desktop.ini")  # fmt: skip
"""Files and folders of operating systems, in lower case; they are ignored, as hidden ones are."""


class Labeled(NamedTuple):
    """A file with its class, or several, and if asked for, its group."""

    path: Path
    label: str | tuple[str, ...]
    group: str = ""


def find_splits(
    root: Path, notes: list[str], suffixes: Sequence[str] = SUFFIXES, kind: str = "images"
) -> dict[str, list[Labeled]]:
    """Returns files with their folder's name, by split.

    Args:
      root: the folder.
      notes: what was noticed on the way is added to it.
      suffixes: of the files.
      kind: what they are called in the notes.
    """
    folders = _folders(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split in splits:
            raise UserError(
                f"{root} has two folders for the split {split!r}, {splits[split].name} and "
                f"{folder.name}: remove one, or merge them"
            )
        if split:
            splits[split] = folder
    if len(splits) == len(folders) > 0 or ("train" in splits and _folders(splits["train"])):
        if "train" not in splits or not _folders(splits["train"]):
            missing = "no folder train" if "train" not in splits else "no class folders in train"
            raise UserError(
                f"{root} has folders of splits ({', '.join(f.name for f in folders)}) but "
                f"{missing}: put one folder per class into each, or name data.labels_file"
            )
        if others := [folder for folder in folders if folder not in splits.values()]:
            notes.append(f"left out, beside the folders of splits: {some_paths(others)}")
        order = [name for name in dict.fromkeys(SPLITS.values()) if name in splits]
        return {name: _files(splits[name], notes, suffixes, kind) for name in order}
    return {"train": _files(root, notes, suffixes, kind)}


def read_listed(
    root: Path, table: str, file_column: str, others: Sequence[str]
) -> Iterator[tuple[int, Path, dict[str, str]]]:
    """Yields the number, the file and the fields of each row of a CSV file that names files.

    Args:
      root: the folder that they are below.
      table: the CSV file.
      file_column: its column of paths.
      others: further columns to read.

    Raises:
      UserError: a column is missing, a file is not there, or named twice.
    """
    header, rows = read_csv(table)
    places = {name: column_index(table, header, name) for name in (file_column, *others)}
    seen: dict[Path, int] = {}
    for number, row in enumerate(rows, start=1):
        fields = {name: row[place].strip() for name, place in places.items()}
        file, where = fields[file_column], f"{table}: row {number}"
        path = root / file
        if not path.is_file():
            raise UserError(
                f"{where} names {file or 'no file'}, not in {root}: give paths below data.path, "
                f"with their extension"
            )
        if path in seen:
            raise UserError(
                f"{where} names {file} again, after row {seen[path]}: remove one of them"
            )
        seen[path] = number
        yield number, path, fields


def _files(root: Path, notes: list[str], suffixes: Sequence[str], kind: str) -> list[Labeled]:
    """Returns the files in the folders of a folder; skipped ones are added to `notes`."""
    found, empty, links, others = [], [], [], collections.Counter[str]()
    for folder in _folders(root):
        files = []
        for place, folders, names in os.walk(folder):
            links += [Path(place, n) for n in folders if Path(place, n).is_symlink()]
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for path in (Path(place, name) for name in sorted(names) if not _hidden(name)):
                if path.is_symlink() and not path.is_file():
                    links.append(path)
                elif path.suffix.lower() in suffixes:
                    files.append(path)
                else:
                    others[path.suffix.lower() or "no extension"] += 1
        found += [Labeled(path, folder.name) for path in sorted(files)]
        if not files:
            empty.append(folder)
    loose = [
        p for p in sorted(root.iterdir()) if p.suffix.lower() in suffixes and not _hidden(p.name)
    ]
    linked = [each.path for each in found if each.path.is_symlink()]
    linked += [folder for folder in _folders(root) if folder.is_symlink()]
    counts = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(others.items()))
    for what, said in (
        (f"no {kind}, so no class, in", some_paths(empty)),
        ("left out for their extension", counts),
        ("symbolic links not followed", some_paths(links)),
        ("symbolic links followed", some_paths(linked)),
        ("left out, as they are in no folder of a class", some_paths(loose)),
    ):
        if said:
            notes.append(f"{what}: {said}")
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def summarize(
    path: str, found: Mapping[str, Sequence[Labeled]], notes: Iterable[str], kind: str = "images"
) -> str:
    """Returns counts per split and class, and the notes."""
    classes, parts = classes_of(found), []
    for split, files in found.items():
        counts = collections.Counter(n for each in files for n in split_label(each.label, None))
        named = ", ".join(f"{label} {counts[label]}" for label in classes)
        parts.append(f"{split} {len(files)} {kind} ({named})")
    return "; ".join([f"{path}: {', '.join(parts)}", *notes])


def some_paths(paths: Sequence[Path], most: int = 5) -> str:
    """Returns the first paths as text."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(str, paths[:most])) + more


def classes_of(found: Mapping[str, Sequence[Labeled]], delimiter: str | None = None) -> list[str]:
    """Returns the sorted class names; with a delimiter a label holds any number of them."""
    labels = {each.label for files in found.values() for each in files}
    return sorted({name for label in labels for name in split_label(label, delimiter)})


def split_label(label: str | tuple[str, ...], delimiter: str | None) -> list[str]:
    """Returns the classes that a label names; a text is one itself without a delimiter."""
    if isinstance(label, tuple):
        return list(label)
    if delimiter is None:
        return [label]
    return [name.strip() for name in label.split(delimiter) if name.strip()]
