"""How a file becomes an example for prediction: as the training examples are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.files import read_texts
from jdl.data.images import MODES, decode_image
from jdl.data.resize import Resize
from jdl.data.sources import Example
from jdl.typing import Json

Reader = Callable[[Path], dict[str, np.ndarray]]
"""Reads a file as examples without targets: arrays by name, examples along axis 0."""


def describe_files(examples: Sequence[Example]) -> dict[str, Json]:
    """Returns `reads` and `shape` of examples, as `Data.fit` describes them."""
    text = examples[0].get("text")
    if isinstance(text, (str, bytes)):
        return {"reads": "text" if isinstance(text, str) else "bytes"}
    images = [np.asarray(example.get("image")) for example in examples]
    if any(i.dtype != np.uint8 or i.ndim != 3 or i.shape[2] not in MODES for i in images):
        return {"reads": None}
    shapes = {image.shape for image in images}
    height, width, channels = min(shapes)
    same = len(shapes) == 1
    shape = [height if same else None, width if same else None, channels]
    return {"reads": "image", "shape": shape}


def file_reader(known: Mapping[str, Any], resized: bool) -> Reader | None:
    """Returns what reads files as `describe_files` says, None where it names no kind.

    Args:
      known: what `describe_files` returned.
      resized: a transform resizes images, so that the reader does not.
    """
    if known.get("reads") in ("text", "bytes"):
        return _text_reader(known["reads"] == "bytes")
    if known.get("reads") == "image":
        return _image_reader(known["shape"], resized)
    return None


def _text_reader(binary: bool) -> Reader:
    def read(path: Path) -> dict[str, np.ndarray]:
        texts = read_texts(path, "text")
        return {"text": np.array([t.encode() if binary else t for t in texts], object)}

    return read


def _image_reader(shape: Sequence[Any], resized: bool) -> Reader:
    height, width, channels = shape

    def read(path: Path) -> dict[str, np.ndarray]:
        example = {"image": decode_image(path, MODES[channels])}
        if height is not None and not resized:
            example = Resize(height=height, width=width)(example)
        return {"image": example["image"][None]}

    return read
