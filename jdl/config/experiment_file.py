"""Finds and reads experiment files."""

import ast
import contextlib
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from jdl.errors import UserError, first_line, nearest
from jdl.experiment import Experiment
from jdl.typing import FILE_MODULE


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment and the file that defines it."""

    name: str
    experiment: Experiment
    path: Path
    siblings: tuple[Path, ...] = ()
    """Other files of the same folder that it imports."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Search space of `jdl tune`: dimensions of `jdl.sweeps.search` by path."""
    constraints: tuple[Callable[[Mapping[str, Any]], bool], ...] = ()
    """Predicates on the values by path, which every point of the search must satisfy."""


def load(name: str | Path) -> ExperimentFile:
    """Loads an experiment file.

    Executes the file as a Python script, with its own folder on the import path.

    Args:
      name: a path; or the name of a file in `experiments/` of the working directory, or else of
        one shipped with the package.

    Raises:
      UserError: there is no such experiment, or its file fails.
    """
    path = find(name)
    identity = FILE_MODULE + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(identity, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    with _importable(path.parent, identity) as siblings:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module.__name__]
            if isinstance(error, UserError):
                raise UserError(f"{path}: {error}") from error
            frames = traceback.extract_tb(error.__traceback__)
            here = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
            line = here[-1] if here else getattr(error, "lineno", None)
            message = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{path}, line {line}: {message}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no `experiment = Experiment(...)`")
    space, constraints = (getattr(module, name, ()) for name in ("space", "constraints"))
    return ExperimentFile(
        path.stem, experiment, path, tuple(siblings), dict(space), tuple(constraints)
    )


def find(name: str | Path) -> Path:
    """Finds the file of an experiment; see `load`."""
    path = Path(name)
    if path.suffix == ".py" or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(f"there is no experiment file {path}")
    known = available()
    wanted = str(name).replace("-", "_")
    if wanted not in known:
        raise UserError(f"there is no experiment {str(name)!r}{nearest(str(name), known)} "
                        f"(`jdl list` shows all)")  # fmt: skip
    return known[wanted]


def available() -> dict[str, Path]:
    """Experiments by name: those of the working directory, then those of the package."""
    package = Path(__file__).parents[1]
    # A wheel contains the files inside the package; a checkout has them next to it.
    shipped = package / "experiments"
    shipped = shipped if shipped.is_dir() else package.parent / "experiments"
    found: dict[str, Path] = {}
    for folder in (Path("experiments"), shipped):
        for path in sorted(folder.glob("[!_]*.py")):
            found.setdefault(path.stem, path)
    return found


@dataclass(frozen=True)
class Expectation:
    """The expected result in an experiment's docstring."""

    metric: str
    """Split and name, such as `test accuracy`."""
    mean: float
    seeds: int
    least: float
    seconds: float
    machine: str


EXPECT = re.compile(
    r"^Expect: (?P<metric>\w+ \w+) (?P<mean>[\d.]+) \((?P<seeds>\d+) seeds?, "
    r"(?:min|max) (?P<least>[\d.]+)\), (?P<seconds>[\d.]+) s, (?P<machine>.+)$",
    re.MULTILINE,
)


def documentation(path: Path) -> str:
    """Reads the docstring of an experiment file without executing it."""
    try:
        return ast.get_docstring(ast.parse(path.read_text())) or ""
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error


def expectation(path: Path) -> Expectation | None:
    """Parses the `Expect:` line of an experiment file; None if it has none."""
    match = EXPECT.search(documentation(path))
    if match is None:
        return None
    return Expectation(
        metric=match["metric"],
        mean=float(match["mean"]),
        seeds=int(match["seeds"]),
        least=float(match["least"]),
        seconds=float(match["seconds"]),
        machine=match["machine"],
    )


@contextlib.contextmanager
def _importable(folder: Path, identity: str) -> Iterator[list[Path]]:
    """Makes a folder importable and lists the files imported from it.

    Renames the modules afterwards, since another folder may have files of the same names.
    """
    folder = folder.resolve()
    before, imported, done = set(sys.modules), [], False
    sys.path.insert(0, str(folder))
    try:
        yield imported
        done = True
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin) == folder / f"{name}.py":
                imported.append(Path(origin))
                module = sys.modules.pop(name)
                if done:
                    _rename(module, f"{identity}_{name}")


def _rename(module: ModuleType, name: str) -> None:
    """Registers a module and its definitions under another name."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) == module.__name__:
            with contextlib.suppress(AttributeError, TypeError):
                value.__module__ = name
    module.__name__ = name
    sys.modules[name] = module
