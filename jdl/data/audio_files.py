"""Sounds in files, labeled by folders, or labeled or transcribed by a CSV file."""

import concurrent.futures
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jdl.audio import SUFFIXES, read_audio
from jdl.audio.files import describe_faults
from jdl.data.base import Data
from jdl.data.fingerprints import hash_files
from jdl.data.labeled_files import (
    Labeled,
    classes_of,
    find_splits,
    read_listed,
    some_paths,
    summarize,
)
from jdl.data.log import warn_once
from jdl.data.sources import Example, Source
from jdl.errors import UserError
from jdl.typing import Json


@dataclass(frozen=True)
class AudioFiles:
    """Sounds by path with what belongs to each, decoded on access."""

    paths: tuple[Path, ...]
    name: str  # of what belongs to each: `label` or `text`
    values: tuple[Any, ...]
    sample_rate: int
    channel: int | None = None
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of sounds."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """`audio` (samples,) float32, its `file`, and `label` or `text`."""
        path = self.paths[index]
        audio, _ = read_audio(path, self.sample_rate, self.channel)
        return {"audio": audio, "file": str(path), self.name: self.values[index]}

    def array(self, name: str) -> np.ndarray | None:
        """What belongs to the sounds, or the groups under any other name."""
        return np.array(self.values if name == self.name else self.groups)

    def digest(self) -> str:
        """SHA-256 of the files and what belongs to each."""
        files = zip(self.paths, self.values, strict=True)
        return hash_files([(path, f"{path.name} {value}") for path, value in files])


@dataclass(frozen=True, kw_only=True)
class AudioFolder(Data):
    """Sound files: `audio` (samples,) float32, and `label` () int32 or the transcript `text`.

    `path` has one folder per class, or `train`, `validation` (`val`, `valid`) and `test` folders
    that each do. With `labels_file`, sounds may be anywhere below `path`, and have a class, or with
    `text_column` a transcript, which becomes tokens in `Speech`. WAV, FLAC, OGG, MP3 and AIFF of
    any rate are brought to `sample_rate` and one channel. Unreadable files are left out; silent and
    clipped ones are kept, and named in a summary that is logged once. Sounds differ in length:
    bring them to one with `FixLength` or `Pad`.
    """

    path: str = field(kw_only=False)  # the folder
    sample_rate: int = 16000  # samples per second, to which others are resampled
    channel: int | None = None  # of several, from 0; None: their mean
    labels_file: str | None = None  # CSV file with a row per sound
    file_column: str = "file"  # its column of paths below `path`
    label_column: str = "label"  # its column of classes
    text_column: str | None = None  # its column of transcripts, in place of classes
    group: str | None = None  # its column of which no value is in two splits, such as a speaker
    max_unreadable: int = 10  # unreadable sounds to warn of and skip; one more is an error
    stratify: bool | None = None  # hold out the same share of each class; None: unless grouped

    locations = ("path", "labels_file")
    array_names = ("audio", "label")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "text_column"):
            if getattr(self, name) and not self.labels_file:
                raise UserError(f"data.{name} is a column of data.labels_file: set that too")
        if self.sample_rate < 1:
            raise UserError(f"data.sample_rate must be at least 1, not {self.sample_rate}")

    def load(self) -> dict[str, Source]:
        """Returns the splits with a folder, else `train`.

        Raises:
          UserError: there are no sounds, fewer than two classes, or too many are unreadable; the
            labels file cannot be read, names a file that is not there, or has no label for one.
        """
        found, notes = self._found()
        kept, faults = self._readable(found)
        if self.text_column:
            warn_once("; ".join([f"{self.path}: {len(kept['train'])} sounds", *faults]))
            return {"train": self._files(kept["train"], "text", None)}
        classes = self.fitted_values["classes"] if self.fitted_values else classes_of(found)
        if new := sorted(set(classes_of(found)) - set(classes)):
            raise UserError(
                f"{self.path} holds the class {new[0]!r}, which the run was not trained on (it "
                f"knows {', '.join(classes)})"
            )
        warn_once(summarize(self.path, kept, (*notes, *faults), "sounds"))
        return {split: self._files(files, "label", classes) for split, files in kept.items()}

    def fit(self) -> dict[str, Json]:
        """Returns how sounds are read, and `classes`."""
        known = {"classes": list(self.output_names()), "channel": self.channel}
        return {**super().fit(), **known}

    def output_names(self) -> tuple[str, ...]:
        """The classes; () of transcripts."""
        if self.fitted_values:
            return tuple(self.fitted_values["classes"])
        return () if self.text_column else tuple(classes_of(self._found()[0]))

    def full_name(self) -> str:
        """The name of the folder."""
        return Path(self.path).expanduser().name

    def _files(
        self, files: Sequence[Labeled], name: str, classes: Sequence[str] | None
    ) -> AudioFiles:
        texts = [str(each.label) for each in files]
        values = texts if classes is None else [np.int32(classes.index(text)) for text in texts]
        groups, paths = tuple(each.group for each in files), tuple(each.path for each in files)
        return AudioFiles(paths, name, tuple(values), self.sample_rate, self.channel, groups)

    def _found(self) -> tuple[dict[str, list[Labeled]], list[str]]:
        """Returns the files with their class or text, by split, and what was noticed on the way."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} is no folder")
        notes: list[str] = []
        if self.labels_file:
            found = {"train": self._listed(root)}
        else:
            found = find_splits(root, notes, SUFFIXES, "sounds")
        if not self.text_column and len(classes_of(found)) < 2:
            raise UserError(
                f"{root} holds sounds of {len(classes_of(found))} classes, where two are needed: "
                f"one folder a class with files such as {', '.join(SUFFIXES[:2])}"
                f"{''.join('; ' + note for note in notes)}"
            )
        return found, notes

    def _listed(self, root: Path) -> list[Labeled]:
        """Returns the files with their classes or texts from the CSV file."""
        table, label, files = str(self.labels_file), self.text_column or self.label_column, []
        others = (label, *([self.group] if self.group else []))
        for number, path, fields in read_listed(root, table, self.file_column, others):
            if missing := [name for name in others if not fields[name]]:
                raise UserError(
                    f"{table}: row {number} has no {missing[0]}: complete it, or remove the row"
                )
            files.append(Labeled(path, fields[label], fields[self.group] if self.group else ""))
        return files

    def _readable(
        self, found: Mapping[str, Sequence[Labeled]]
    ) -> tuple[dict[str, list[Labeled]], list[str]]:
        """Returns the files that can be read, and notes about the faults of some."""
        paths = tuple(each.path for files in found.values() for each in files)
        bad, faults = inspect(paths, self.channel)
        if len(bad) > self.max_unreadable:
            raise UserError(
                f"{len(bad)} of {len(paths)} sounds cannot be read, more than "
                f"data.max_unreadable = {self.max_unreadable}: {next(iter(bad.values()))}"
            )
        for reason in bad.values():
            warn_once(f"left out: {reason}")
        kept = {name: [f for f in files if f.path not in bad] for name, files in found.items()}
        notes = []
        for fault in ("silent", "clipped", "short"):
            if faulty := [path for path, what in faults.items() if what.startswith(fault)]:
                notes.append(f"{fault}, and kept: {some_paths(faulty)}")
        return kept, notes


@functools.lru_cache(maxsize=4)
def inspect(
    paths: tuple[Path, ...], channel: int | None
) -> tuple[Mapping[Path, str], Mapping[Path, str]]:
    """Returns the sounds that cannot be read, with the reasons, and the faults of others."""

    def look(path: Path) -> tuple[str, str]:
        try:
            return "", describe_faults(*read_audio(path, None, channel))
        except UserError as error:
            return str(error), ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(zip(paths, pool.map(look, paths), strict=True))
    reasons = {path: reason for path, (reason, _) in found if reason}
    return reasons, {path: fault for path, (_, fault) in found if fault}
