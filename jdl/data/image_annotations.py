"""Data sets of images with boxes or masks, as annotation tools write them."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jdl.data.annotations import Objects, read_coco, read_voc, read_yolo
from jdl.data.base import Data
from jdl.data.fingerprints import hash_files
from jdl.data.images import decode_image, decode_mask, image_size
from jdl.data.labeled_files import SPLITS, SUFFIXES, some_paths
from jdl.data.sources import Example, Source
from jdl.errors import UserError

_log = logging.getLogger(__name__)

SPLIT = "{split}"
"""In a path: stands for `train`, `val` or `test`, or another usual name of these."""


@dataclass(frozen=True)
class BoxFiles:
    """Images with their objects, decoded on access."""

    folder: Path
    items: tuple[Objects, ...]
    mode: str  # Pillow mode
    has_crowds: bool

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        """`image` uint8, `boxes` (n, 4) float32, `labels` (n,) int32, and `file`."""
        each = self.items[index]
        found: dict[str, Any] = {
            "image": decode_image(self.folder / each.file, self.mode),
            "boxes": np.array(each.boxes, np.float32).reshape(-1, 4),
            "labels": np.array(each.labels, np.int32),
            "file": each.file,
        }
        return {**found, "is_crowd": np.array(each.is_crowd, bool)} if self.has_crowds else found

    def digest(self) -> str:
        """SHA-256 of the files and their objects."""
        return hash_files([(self.folder / each.file, repr(each)) for each in self.items])


@dataclass(frozen=True, kw_only=True)
class ImageBoxes(Data):
    """Images with boxes: `image`, `boxes` (n, 4) as x0, y0, x1, y1 in pixels, and `labels` (n,).

    `annotations` is a COCO JSON file, a folder of Pascal VOC XML files, or one of YOLO text files.
    `{split}` in both paths stands for the usual names of splits: `ImageBoxes("images/{split}",
    "labels/{split}")`. Boxes are clipped to their image. Lists of different length need a `Pad`
    among the transforms. If any object is a crowd (COCO) or difficult (VOC), examples have
    `is_crowd` (n,) bool, too, to be padded with the others.
    """

    images: str = field(kw_only=False)  # the folder of images
    annotations: str = field(kw_only=False)  # the file, or the folder
    classes: tuple[str, ...] = ()  # names in the order of their numbers; (): the annotations'
    mode: Literal["RGB", "L"] = "RGB"  # color, or one channel of gray
    max_invalid: int = 0  # inverted, empty or outside boxes to warn of and leave out

    locations = ("images", "annotations")

    def load(self) -> dict[str, Source]:
        """Returns the splits that exist, else `train`.

        Raises:
          UserError: an annotation does not fit its image, or there are no images.
        """
        read, _ = self._read
        crowds = any(any(each.is_crowd) for _, items in read.values() for each in items)
        return {
            name: BoxFiles(folder, tuple(items), self.mode, crowds)
            for name, (folder, items) in read.items()
        }

    def full_name(self) -> str:
        """The name of the annotations."""
        return Path(self.annotations).expanduser().stem

    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        if self.fitted_values is not None:
            return tuple(self.fitted_values["classes"])
        return self.classes or self._read[1]

    @functools.cached_property
    def _read(self) -> tuple[dict[str, tuple[Path, list[Objects]]], tuple[str, ...]]:
        """The folder and the objects of each split, and the classes: by default those of train."""
        bad: list[str] = []

        def invalid(sentence: str) -> None:
            bad.append(sentence)
            if len(bad) > self.max_invalid:
                raise UserError(
                    f"{sentence}: correct it, or let data.max_invalid (now {self.max_invalid}) "
                    f"leave out as many"
                )

        classes = self.classes
        if self.fitted_values is not None:
            classes = tuple(self.fitted_values["classes"])
        found = {}
        for split, images, annotations in _splits(self.images, self.annotations):
            items, classes = _reader(annotations)(annotations, images, invalid, classes)
            if not items:
                raise UserError(f"{annotations} annotates no images of {images}")
            found[split] = images, items
        for sentence in bad:
            _log.warning("left out: %s", sentence)
        return found, classes


def _reader(annotations: Path) -> Any:
    """Returns the function that reads annotations of this kind."""
    if annotations.is_file():
        return read_coco
    for suffix, reader in (("xml", read_voc), ("txt", read_yolo)):
        if any(annotations.rglob(f"*.{suffix}")):
            return reader
    raise UserError(
        f"{annotations} holds no annotations: it is a COCO JSON file, or a folder of VOC .xml or "
        f"YOLO .txt files"
    )


@dataclass(frozen=True)
class MaskFiles:
    """Images and masks by path, decoded on access."""

    pairs: tuple[tuple[Path, Path], ...]
    mode: str  # Pillow mode
    num_classes: int  # ids below it are classes; 0: any
    ignored_class: int | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """`image` (height, width, channels), `segmentation_mask` (height, width, 1), `file`."""
        image, mask = self.pairs[index]
        ids = decode_mask(mask)
        wrong = ids >= (self.num_classes or np.inf)
        if self.ignored_class is not None:
            wrong &= ids != self.ignored_class
        if wrong.any():
            y, x = np.argwhere(wrong)[0].tolist()
            raise UserError(
                f"{mask} has the id {ids[y, x]} at pixel ({y}, {x}), beyond the "
                f"{self.num_classes} classes: correct it, or set data.ignored_class"
            )
        return {
            "image": decode_image(image, self.mode),
            "segmentation_mask": ids[..., None],
            "file": str(image),
        }

    def digest(self) -> str:
        """SHA-256 of the files."""
        return hash_files([(path, path.name) for pair in self.pairs for path in pair])


@dataclass(frozen=True, kw_only=True)
class ImageMasks(Data):
    """Images with masks of the same stem: `image` and `segmentation_mask` (height, width, 1).

    Masks are PNG files whose pixels are class ids: indexed, gray, or of one bit. `{split}` in both
    paths stands for the usual names of splits: `ImageMasks("images/{split}", "masks/{split}")`.
    """

    images: str = field(kw_only=False)  # the folder of images
    masks: str = field(kw_only=False)  # the folder of masks
    classes: tuple[str, ...] = ()  # names in the order of their ids; (): ids are not checked
    ignored_class: int | None = None  # an id beyond the classes that pixels may have
    mode: Literal["RGB", "L"] = "RGB"  # color, or one channel of gray

    locations = ("images", "masks")

    def load(self) -> dict[str, Source]:
        """Returns the splits that exist, else `train`.

        Raises:
          UserError: an image or a mask lacks its other half, or has another size.
        """
        return {
            split: MaskFiles(
                tuple(_pairs(images, masks)), self.mode, len(self.classes), self.ignored_class
            )
            for split, images, masks in _splits(self.images, self.masks)
        }

    def full_name(self) -> str:
        """The name of the folder of images."""
        return Path(self.images).expanduser().name

    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes


def _pairs(images: Path, masks: Path) -> Iterator[tuple[Path, Path]]:
    """Yields images with their masks, sorted."""
    found = [
        {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES
        }
        for folder in (images, masks)
    ]
    for own, other, what, missing in (
        (found[0], found[1], masks, "mask"),
        (found[1], found[0], images, "image"),
    ):
        if lonely := [own[stem] for stem in own.keys() - other.keys()]:
            raise UserError(
                f"{some_paths(sorted(lonely))} has no {missing} of the same name in {what}: add "
                f"it, or remove the file"
            )
    for stem, image in found[0].items():
        sizes = [image_size(path) for path in (image, found[1][stem])]
        if sizes[0] != sizes[1]:
            (height, width), (tall, wide) = sizes
            raise UserError(
                f"{found[1][stem]} has {wide}x{tall} pixels, where its image {image} has "
                f"{width}x{height}: bring both to one size"
            )
        yield image, found[1][stem]


def _splits(images: str, others: str) -> list[tuple[str, Path, Path]]:
    """Returns the splits with their two paths."""
    if SPLIT not in images + others:
        found = [("train", Path(images).expanduser(), Path(others).expanduser())]
    else:
        paths = [
            (split, Path(images.replace(SPLIT, name)), Path(others.replace(SPLIT, name)))
            for name, split in SPLITS.items()
        ]
        paths = [(split, one.expanduser(), other.expanduser()) for split, one, other in paths]
        found = [each for each in paths if each[1].exists() and each[2].exists()]
        names = [split for split, *_ in found]
        if "train" not in names:
            raise UserError(f"{images} and {others} exist for no split train: name its folders")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{images} exists twice for the split {twice[0]}: remove one of them")
    for _, folder, other in found:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        if not other.exists():
            raise UserError(f"{other} does not exist")
    return found
