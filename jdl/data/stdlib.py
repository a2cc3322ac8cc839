"""Python's standard library as text: real, large, and available offline."""

import ast
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.chats import conversations
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


@dataclass(frozen=True, kw_only=True)
class StandardLibraryChats(Data):
    """Conversations about the functions of Python's standard library, made of their docstrings.

    One for each public function with a docstring: what it does, and then, without its name, which
    module it is in or what it is called. Examples have `messages` (see `ChatFile`).
    """

    seed: int = 0  # of the wording

    def load(self) -> dict[str, Source]:
        """Returns one split, `train`."""
        rng = np.random.default_rng(self.seed)
        found = [_conversation(rng, *each) for each in _functions()]
        return {"train": conversations(found)}

    def full_name(self) -> str:
        """`stdlib_chats` and the version of Python."""
        return f"stdlib_chats:{platform.python_version()}"

    def needs(self) -> str:
        """`nothing`."""
        return "nothing"


QUESTIONS = ("What does {} do?", "Explain {}.", "What is {} for?")
MODULES = ("Which module is it in?", "Where do I find it?", "In which module?")
NAMES = ("What is its name?", "How is it called?", "Remind me of its name.")


def _conversation(
    rng: np.random.Generator, module: str, name: str, summary: str
) -> list[dict[str, str]]:
    further = ((MODULES, module), (NAMES, name))
    first = int(rng.integers(2))
    turns = [(rng.choice(QUESTIONS).format(f"{module}.{name}"), summary)]
    turns += [
        (str(rng.choice(asked)), told) for asked, told in (further[first], further[1 - first])
    ]
    roles = ("user", "assistant")
    return [
        {"role": r, "content": text} for turn in turns for r, text in zip(roles, turn, strict=True)
    ]


def _functions() -> Iterator[tuple[str, str, str]]:
    """Yields module, name and the docstring's first sentence of functions, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in _files():
        parts = path.relative_to(root).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if any(name.startswith("_") for name in names):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's texts
            tree = ast.parse(read_text(path))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                summary = text.partition(". ")[0].rstrip(".")
                if summary:
                    yield ".".join(names), node.name, f"{summary}."


def _files() -> list[Path]:
    root, found = Path(sysconfig.get_path("stdlib")), []
    for name in sys.stdlib_module_names - set(LEFT_OUT):
        found += [root / f"{name}.py", *(root / name).rglob("*.py")]
    parts = {path: path.relative_to(root).parts for path in found if path.is_file()}
    return sorted(path for path, names in parts.items() if not {"test", "tests"} & {*names})
