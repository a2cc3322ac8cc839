"""Reads and writes safetensors files; never reads pickled weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from jdl.errors import UserError, first_line, install_command

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as named by safetensors, such as `BF16`

    def read(self) -> np.ndarray:
        """Reads the values as float32.

        Raises:
          UserError: the file is missing or damaged.
        """
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(self.file, "np") as opened:
                return opened.get_tensor(self.name).astype(np.float32)
        except (OSError, safetensors.SafetensorError) as error:
            raise _damaged(self.file, error) from error


def describe(directory: Path) -> dict[str, Tensor]:
    """Lists the tensors in a directory's safetensors files by name, without reading values.

    Raises:
      UserError: there are no such files, or one is missing, truncated or damaged.
    """
    safetensors = _safetensors()
    found = {}
    for file in _files(directory):
        try:
            with safetensors.safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    part = opened.get_slice(name)
                    shape = tuple(part.get_shape())
                    found[name] = Tensor(file, name, shape, part.get_dtype())
        except (OSError, safetensors.SafetensorError) as error:
            raise _damaged(file, error) from error
    return found


def write(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors atomically to `model.safetensors` in a directory.

    Raises:
      UserError: the directory cannot be written.
    """
    safetensors = _safetensors()
    draft = directory / f".{FILE}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(dict(tensors), draft, metadata={"format": "pt"})
        draft.replace(directory / FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory} cannot be written: {first_line(error)}") from error
    finally:
        if draft.exists():
            draft.unlink()


def _files(directory: Path) -> list[Path]:
    """The directory's single file, or the shards in its index."""
    one, index = directory / FILE, directory / INDEX
    if one.is_file():
        return [one]
    if not index.is_file():
        pickled = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
        if pickled:
            raise UserError(
                f"{directory} has only {pickled[0]}: pickled weights are never read, as that may "
                f"execute code; save the model again as safetensors"
            )
        raise UserError(f"{directory} has no {FILE}: save the model as safetensors")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / Path(name).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of files: {first_line(error)}") from error
    if missing:
        raise UserError(f"{index} names missing files: {', '.join(missing)}")
    return files


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            f"models of transformers need the package safetensors: {install_command('text')}"
        ) from error
    return safetensors


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged, or not a safetensors file: {first_line(error)}")
