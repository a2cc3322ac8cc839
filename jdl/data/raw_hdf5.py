"""Reader of PatchCamelyon's HDF5 files."""

import contextlib
import gzip
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jdl.data.archives import DAMAGE, damage_error, find_files
from jdl.data.raw import Example, Splits, encode_png
from jdl.errors import UserError

CHUNK = 256
"""Images that are read at once."""


def read_patch_camelyon(raw: Path) -> Splits:
    """Reads PatchCamelyon (Veeling et al., 2018), gzipped or not.

    What is gzipped is unzipped to a temporary file, up to 7.3 GB, which `TMPDIR` places.

    Args:
      raw: directory with `camelyonpatch_level_2_split_train_x.h5`, `..._train_y.h5`, and those of
        `valid` and `test`.

    Returns:
      `train`, `validation` and `test` of `id`, `image` (PNG bytes of a uint8 [96, 96, 3] image) and
      `label` (1: tumor in the central 32 x 32 pixels).

    Raises:
      UserError: a file is missing, damaged or disagrees with its counterpart, or the package h5py
        is not installed.
    """
    parts = {"train": "train", "validation": "valid", "test": "test"}
    stem = "camelyonpatch_level_2_split"
    names = {part: [f"{stem}_{part}_{kind}.h5" for kind in "xy"] for part in parts.values()}
    paths = find_files(raw, [*itertools.chain(*names.values())])
    return {
        split: _patches(part, *(paths[name] for name in names[part]))
        for split, part in parts.items()
    }


def _patches(part: str, images_path: Path, labels_path: Path) -> Iterator[tuple[str, Example]]:
    with _opened(labels_path, "y") as stored:
        labels = np.asarray(stored).reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{labels_path} is damaged: it holds labels other than 0 and 1")
    with _opened(images_path, "x") as images:
        if images.shape[1:] != (96, 96, 3) or images.dtype != np.uint8:
            raise UserError(
                f"{images_path} holds images of {images.shape[1:]} {images.dtype}, not (96, 96, 3) "
                f"uint8"
            )
        if len(images) != len(labels):
            raise UserError(
                f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels"
            )
        for begin in range(0, len(images), CHUNK):
            for index, image in enumerate(images[begin : begin + CHUNK], begin):
                name = f"{part}_{index}"
                yield (
                    name,
                    {"id": name, "image": encode_png(image), "label": int(labels[index])},
                )


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    """Opens a dataset of an HDF5 file, gzipped or not.

    Raises:
      UserError: the file is damaged or has no such dataset, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "PatchCamelyon's files need the package h5py: pip install 'jdl-research[vision]'"
        ) from error
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(h5py.File(stack.enter_context(_plain(path)), "r"))
            if name not in file:
                raise UserError(f"{path} has no dataset {name!r} (it has {', '.join(file)})")
            yield file[name]
    except DAMAGE as error:
        raise damage_error(path, error) from error


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, unzipped to a temporary one where it is gzipped."""
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("rb"))
        if stream.peek(2)[:2] == b"\x1f\x8b":
            unzipped = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(gzip.open(stream)), unzipped, 1 << 20)
            unzipped.seek(0)
            stream = unzipped
        yield stream
