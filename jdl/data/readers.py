"""How a file becomes an example for prediction: as the training examples are."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.audio import read_audio
from jdl.audio.files import describe_faults
from jdl.data.files import read_texts
from jdl.data.images import MODES, decode_image
from jdl.data.resize import Resize
from jdl.data.sources import Example
from jdl.errors import UserError
from jdl.typing import Json

_log = logging.getLogger(__name__)

Reader = Callable[[Path], dict[str, np.ndarray]]
"""Reads a file as examples without targets: arrays by name, examples along axis 0."""


def describe_files(examples: Sequence[Example], sample_rate: int | None = None) -> dict[str, Json]:
    """Returns `reads` and `shape` of examples, as `Data.fit` describes them.

    Args:
      examples: some of the training split.
      sample_rate: of their `audio`; None: they have none.
    """
    text = examples[0].get("text")
    if isinstance(text, (str, bytes)):
        return {"reads": "text" if isinstance(text, str) else "bytes"}
    audio = np.asarray(examples[0].get("audio"))
    if sample_rate is not None and audio.ndim == 1 and audio.dtype in (np.int16, np.float32):
        return {"reads": "audio", "sample_rate": sample_rate, "dtype": audio.dtype.name}
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
    if known.get("reads") == "audio":
        return audio_reader(known["sample_rate"], known["dtype"], known.get("channel"))
    if known.get("reads") == "image":
        return _image_reader(known["shape"], resized)
    return None


def audio_rate(data: Any) -> int | None:
    """Returns the samples per second of the sounds of a data set.

    Those of its field `sample_rate`, or that its device transforms make spectra of.

    Raises:
      UserError: the two differ.
    """
    own = getattr(data, "sample_rate", None)
    for index, each in enumerate(data.device_transforms):
        spectrogram = getattr(each, "spectrogram", None)
        if spectrogram is not None and own not in (None, spectrogram.sample_rate):
            raise UserError(
                f"data.sample_rate is {own}, where data.device_transforms.{index}.spectrogram is "
                f"of {spectrogram.sample_rate} samples per second: make them equal"
            )
        own = own if spectrogram is None else spectrogram.sample_rate
    return own


def audio_reader(sample_rate: int, dtype: str = "float32", channel: int | None = None) -> Reader:
    """Returns what reads a sound as `audio` (1, samples); warns of a poor one.

    Args:
      sample_rate: to which it is resampled.
      dtype: `float32` from -1 to 1, or `int16`.
      channel: see `jdl.audio.read_audio`.
    """

    def read(path: Path) -> dict[str, np.ndarray]:
        if fault := describe_faults(*read_audio(path, None, channel)):
            _log.warning("%s is %s", path, fault)
        x, _ = read_audio(path, sample_rate, channel)
        if dtype == "int16":
            x = np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16)
        return {"audio": x[None]}

    return read


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
