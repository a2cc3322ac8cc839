"""Annotations of boxes in the formats of COCO, Pascal VOC and YOLO, read and written."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdl.data.boxes import BoxFormat, box_fault, from_corners, to_corners
from jdl.data.images import image_size
from jdl.data.labeled_files import SUFFIXES
from jdl.errors import UserError

DIGITS = 4
"""Decimals of a pixel to which boxes are rounded, so that they survive a change of format."""


CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""Of a box in VOC XML."""


class Objects(NamedTuple):
    """The objects in one image."""

    file: str  # path of the image below the folder of images
    height: int  # of the image, in pixels
    width: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()  # x0, y0, x1, y1 in pixels
    labels: tuple[int, ...] = ()  # their classes
    is_crowd: tuple[bool, ...] = ()  # COCO's `iscrowd`, VOC's `difficult`


class Found(NamedTuple):
    """One object before its box is checked."""

    box: Any  # four numbers
    label: int
    is_crowd: bool
    where: str  # for errors


Invalid = Callable[[str], Any]
"""Called with a sentence about each box that is left out; it may raise."""


def read_coco(
    path: Path, images: Path, invalid: Invalid, classes: Sequence[str] = ()
) -> tuple[list[Objects], tuple[str, ...]]:
    """Reads a COCO JSON file: its images in their order, and the names of the categories by id.

    Segmentations are not read.

    Args:
      path: the file.
      images: the folder of images.
      invalid: for boxes that are inverted, empty or outside of their image.
      classes: names of the categories in the order wanted; (): as in the file.

    Raises:
      UserError: the file is no COCO JSON, an image is missing or of another size, an annotation
        names no image or category of the file.
    """
    content = _json(path)
    names = {each["id"]: str(each["name"]) for each in content["categories"]}
    ordered = tuple(classes) or tuple(names[i] for i in sorted(names))
    found: dict[Any, list[Found]] = {each["id"]: [] for each in content["images"]}
    for index, each in enumerate(content["annotations"]):
        where = f"{path}: annotation {index}"
        if each.get("image_id") not in found:
            raise UserError(
                f"{where} names image_id {each.get('image_id')!r}, which is not among the images "
                f"of the file: add the image, or remove the annotation"
            )
        name = names.get(each.get("category_id"))
        label = _label(name, ordered, f"{where} has category_id {each.get('category_id')!r}")
        crowd = bool(each.get("iscrowd", 0))
        found[each["image_id"]].append(Found(each.get("bbox"), label, crowd, where))
    items = []
    for index, image in enumerate(content["images"]):
        where = f"{path}: image {index}"
        file, objects = str(image["file_name"]), found[image["id"]]
        said = (image.get("height"), image.get("width"))
        size = _size(images, file, where, None if None in said else said)
        items.append(_checked(file, size, objects, "xywh", invalid))
    return items, ordered


def read_voc(
    folder: Path, images: Path, invalid: Invalid, classes: Sequence[str] = ()
) -> tuple[list[Objects], tuple[str, ...]]:
    """Reads a folder of Pascal VOC XML files, sorted by name; see `read_coco`.

    Positions are pixels from 1, the last one included. Classes are by default all names, sorted.
    """
    parsed = []
    for path in sorted(folder.rglob("*.xml")):
        try:
            parsed.append((path, ET.parse(path).getroot()))
        except ET.ParseError as error:
            raise UserError(f"{path} is no XML: {error}") from error
    every = {_text(each, "name", path) for path, root in parsed for each in root.iter("object")}
    ordered = tuple(classes) or tuple(sorted(every))
    items = []
    for path, root in parsed:
        file, size, objects = _text(root, "filename", path), root.find("size"), []
        for index, each in enumerate(root.iter("object")):
            where = f"{path}: object {index}"
            label = _label(_text(each, "name", path), ordered, where)
            corners = [
                _text(each, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            box = _numbers(corners, where)
            difficult = each.findtext("difficult", "0").strip() == "1"
            objects.append(Found([box[0] - 1, box[1] - 1, *box[2:]], label, difficult, where))
        sides = None
        if size is not None:
            sides = [
                int(_numbers([_text(size, n, path)], str(path))[0]) for n in ("height", "width")
            ]
        known = _size(images, file, str(path), sides if sides and all(sides) else None)
        items.append(_checked(file, known, objects, "xyxy", invalid))
    return items, ordered


def read_yolo(
    folder: Path, images: Path, invalid: Invalid, classes: Sequence[str] = ()
) -> tuple[list[Objects], tuple[str, ...]]:
    """Reads a folder of YOLO text files, one for each image; see `read_coco`.

    A line is class, center x and y, width and height, as shares of the image. An image without a
    file has no objects. Classes are named in `classes.txt` in the folder, else by their numbers.
    """
    listed = folder / "classes.txt"
    if not classes and listed.is_file():
        classes = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    pictures = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = {p.relative_to(images).with_suffix("").as_posix(): p for p in pictures}
    texts = {
        p.relative_to(folder).with_suffix("").as_posix(): p
        for p in sorted(folder.rglob("*.txt"))
        if p != listed
    }
    if orphans := sorted(texts.keys() - files.keys()):
        raise UserError(
            f"{texts[orphans[0]]} annotates an image {orphans[0]} that is not in {images}: add the "
            f"image, or remove the file"
        )
    most, read = -1, {}
    for stem in files:
        read[stem] = []
        lines = texts[stem].read_text().splitlines() if stem in texts else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{texts[stem]}: line {number}"
            values = _numbers(line.split(), where)
            if len(values) != 5 or not values[0].is_integer() or values[0] < 0:
                raise UserError(
                    f"{where} is {line.strip()!r}, where YOLO has a class from 0 and four numbers"
                )
            most = max(most, int(values[0]))
            if classes and values[0] >= len(classes):
                raise UserError(
                    f"{where} has class {int(values[0])}, beyond the {len(classes)} classes: name "
                    f"all of them in data.classes or {listed}"
                )
            read[stem].append(Found(values[1:], int(values[0]), False, where))
    items = []
    for stem, path in files.items():
        file = path.relative_to(images).as_posix()
        size = _size(images, file, str(path), None)
        items.append(_checked(file, size, read[stem], "rel_center_xywh", invalid))
    return items, tuple(classes) or tuple(map(str, range(most + 1)))


def write_coco(
    path: Path,
    items: Sequence[Objects],
    classes: Sequence[str],
    scores: Sequence[Sequence[float]] | None = None,
) -> None:
    """Writes objects as a COCO JSON file, with ids from 1.

    Args:
      path: the file.
      items: the objects of each image.
      classes: names, by label.
      scores: of each object of each image, if they were predicted.
    """
    annotations: list[dict[str, Any]] = []
    for image, each in enumerate(items, start=1):
        objects = zip(each.boxes, each.labels, each.is_crowd, strict=True)
        for number, (box, label, crowd) in enumerate(objects):
            x, y, width, height = from_corners(np.array(box), "xywh", each.height, each.width)[0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [round(float(value), DIGITS) for value in (x, y, width, height)],
                    "area": float(width * height),
                    "iscrowd": int(crowd),
                    **({} if scores is None else {"score": scores[image - 1][number]}),
                }
            )
    images = [
        {"id": i, "file_name": each.file, "height": each.height, "width": each.width}
        for i, each in enumerate(items, start=1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def write_voc(folder: Path, items: Sequence[Objects], classes: Sequence[str]) -> None:
    """Writes objects as Pascal VOC XML files, named as the images."""
    for each in items:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = each.file
        size = ET.SubElement(root, "size")
        for name, value in (("width", each.width), ("height", each.height)):
            ET.SubElement(size, name).text = str(value)
        for box, label, crowd in zip(each.boxes, each.labels, each.is_crowd, strict=True):
            item = ET.SubElement(root, "object")
            ET.SubElement(item, "name").text = classes[label]
            ET.SubElement(item, "difficult").text = str(int(crowd))
            corners = ET.SubElement(item, "bndbox")
            shifted = (box[0] + 1, box[1] + 1, box[2], box[3])
            for name, value in zip(CORNERS, shifted, strict=True):
                ET.SubElement(corners, name).text = f"{round(value, DIGITS):.{DIGITS}f}"
        path = _beside(folder, each.file, ".xml")
        ET.ElementTree(root).write(path, encoding="utf-8")


def write_yolo(folder: Path, items: Sequence[Objects], classes: Sequence[str]) -> None:
    """Writes objects as YOLO text files, named as the images, and `classes.txt`.

    Raises:
      UserError: an object is a crowd, which the format cannot hold.
    """
    for each in items:
        if any(each.is_crowd):
            raise UserError(
                f"object {each.is_crowd.index(True)} of {each.file} is a crowd or difficult, which "
                f"YOLO files do not hold: write COCO JSON, or leave it out"
            )
        boxes = np.array(each.boxes, float).reshape(-1, 4)
        shares = from_corners(boxes, "rel_center_xywh", each.height, each.width)
        lines = [
            " ".join([str(label), *(repr(float(value)) for value in row)])
            for label, row in zip(each.labels, shares, strict=True)
        ]
        _beside(folder, each.file, ".txt").write_text("".join(line + "\n" for line in lines))
    (folder / "classes.txt").write_text("".join(name + "\n" for name in classes))


def _checked(
    file: str,
    size: tuple[int, int],
    objects: Sequence[Found],
    source: BoxFormat,
    invalid: Invalid,
) -> Objects:
    """Returns the objects of an image whose boxes are valid, clipped to it."""
    height, width = size
    kept = []
    for each in objects:
        values = np.array(_numbers(each.box, each.where))
        if values.shape != (4,):
            raise UserError(f"{each.where} has the box {each.box!r}, where four numbers are needed")
        box = np.round(to_corners(values, source, height, width)[0], DIGITS)
        if fault := box_fault(box, height, width):
            invalid(f"{each.where}: the box in {file} is {fault}")
            continue
        x0, y0, x1, y1 = np.clip(box, 0, [width, height] * 2).tolist()
        kept.append(((x0, y0, x1, y1), each.label, each.is_crowd))
    boxes, labels, crowds = zip(*kept, strict=True) if kept else ((), (), ())
    return Objects(file, height, width, boxes, labels, crowds)


def _size(images: Path, file: str, where: str, said: Sequence[float] | None) -> tuple[int, int]:
    """Returns height and width of an image, which are those that its annotation says."""
    path = images / file
    if not path.is_file():
        raise UserError(
            f"{where} annotates {file}, which is not in {images}: add the image, or remove the "
            f"annotation"
        )
    height, width = image_size(path)
    if said is not None and tuple(said) != (height, width):
        raise UserError(
            f"{where} says that {file} has {said[1]:g}x{said[0]:g} pixels, where it has "
            f"{width}x{height}: its boxes are of another image"
        )
    return height, width


def _label(name: str | None, classes: Sequence[str], where: str) -> int:
    if name not in classes:
        known = ", ".join(classes)
        raise UserError(f"{where}, a class {name!r} that is not among {known}: name it as one")
    return list(classes).index(str(name))


def _text(element: ET.Element, name: str, path: Path) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise UserError(f"{path} has no {name} in <{element.tag}>")
    return found


def _numbers(values: Any, where: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has {values!r}, where numbers are needed") from error


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"{path} has no list {name!r}, which a COCO JSON file holds")
    return content


def _beside(folder: Path, file: str, suffix: str) -> Path:
    path = folder / Path(file).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
