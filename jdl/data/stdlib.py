"""Python's standard library as text: real, large, and available offline."""

import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.files import read_text
from jdl.data.sources import Source

LEFT_OUT = ("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo")
"""Modules that some distributions of Python leave out."""


@dataclass(frozen=True, kw_only=True)
class StandardLibrary(Data):
    """The modules of Python's standard library, one `text` per file, sorted by path.

    Some files are held out by `split_seed`. Tests are left out, and `LEFT_OUT`. The text is that of
    the Python that runs.
    """

    test_fraction: float = 0.0  # of the files; 0: no split

    def load(self) -> dict[str, Source]:
        """Returns `train`, and with `validation_fraction` also `validation`."""
        texts = np.array([read_text(path) for path in _files()], object)
        train: Source = ArraySource({"text": texts})
        if not self.validation_fraction:
            return {"train": train}
        train, validation = self._hold_out(train, self.validation_fraction)
        return {"train": train, "validation": validation}

    def full_name(self) -> str:
        """`stdlib` and the version of Python."""
        return f"stdlib:{platform.python_version()}"

    def needs(self) -> str:
        """`nothing`."""
        return "nothing"


def _files() -> list[Path]:
    root, found = Path(sysconfig.get_path("stdlib")), []
    for name in sys.stdlib_module_names - set(LEFT_OUT):
        found += [root / f"{name}.py", *(root / name).rglob("*.py")]
    parts = {path: path.relative_to(root).parts for path in found if path.is_file()}
    return sorted(path for path, names in parts.items() if not {"test", "tests"} & {*names})
