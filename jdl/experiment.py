"""An experiment says everything about a run; a file holds one, and a directory finds it by name."""

import ast
import contextlib
import hashlib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jdl.data.base import Data
from jdl.errors import UserError, first_line, nearest
from jdl.hooks import (
    Checkpoint,
    Evaluate,
    Hook,
    Progress,
    RetraceWarning,
    TensorBoard,
)
from jdl.optimizers import Adam, Optimizer
from jdl.parallel import DataParallel, Strategy
from jdl.step import Program
from jdl.tasks import Classification, Task
from jdl.typing import FILE_MODULE
from jdl.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to train, on what, how, and what happens along the way."""

    model: nn.Module  # the network
    task: Task = Classification()  # what is learned
    data: Data  # what it is learned from
    optimizer: Optimizer = Adam(1e-3)  # how parameters change
    strategy: Strategy = DataParallel()  # how the work is spread over devices
    hooks: tuple[Hook, ...] = (
        Progress(),
        TensorBoard(),
        Evaluate(),
        Checkpoint(),
        RetraceWarning(),
    )  # what happens between steps, in this order
    weights: Weights = Weights()  # what parameters begin with
    epochs: float | None = None  # passes over the training split
    steps: int | None = None  # optimizer steps; where given, they count and epochs do not
    batch_size: int = 32  # examples per optimizer step, over all devices
    accumulate: int = 1  # micro-batches that a batch is computed in; changes memory, not results
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; parameters are fp32
    steps_per_dispatch: int = 1  # steps in one call to the device; changes speed, not results
    compiler_options: tuple[tuple[str, str], ...] = ()  # of XLA, as (name, value)
    malloc_arenas: int = 1  # of glibc on CPUs; 0, one a thread, suits steps below 50 ms
    log_every: int = 100  # steps between training rows, each the mean over its steps
    stop_after_skipped: int = 10  # skipped non-finite steps in a row that end the run
    seed: int = 0  # of initial parameters, order of examples, dropout and augmentation

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "steps_per_dispatch", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("epochs", "steps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} must be positive, not {value}")
        if self.epochs is None and self.steps is None:
            raise UserError("an experiment needs epochs or steps; neither was given")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal "
                f"micro-batches (accumulate)"
            )
        if self.data.batch_size not in (None, self.batch_size):
            raise UserError(
                f"the order of the data fits batches of {self.data.batch_size}, not of "
                f"{self.batch_size}: set batch_size, or data.streams"
            )
        if self.stop_after_skipped < 1:
            raise UserError(f"stop_after_skipped must be at least 1, not {self.stop_after_skipped}")
        if self.malloc_arenas < 0:
            raise UserError(f"malloc_arenas must not be negative, but is {self.malloc_arenas}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must lie between 0 and 2^63 - 1, but is {self.seed}")
        dropout = getattr(self.model, "dropout", None)
        if isinstance(dropout, (int, float)) and not 0 <= dropout <= 1:
            raise UserError(f"model.dropout is a share in [0, 1], not {dropout}")

    def total_steps(self, examples: int) -> int:
        """Steps of the whole run over a training split of this size."""
        return self.steps or math.ceil((self.epochs or 0) * examples / self.batch_size)

    def compute_model(self) -> nn.Module:
        """The model, computing in the chosen precision.

        Raises:
          UserError: bf16 was asked of a model that has no field `dtype`.
        """
        if self.precision == "fp32":
            return self.model
        if not hasattr(self.model, "dtype"):
            raise UserError(
                f"precision bf16 needs a model with a field dtype, which "
                f"{type(self.model).__name__} has not"
            )
        return self.model.clone(dtype=jnp.bfloat16)

    def program(self, steps: int) -> Program:
        """What a step of a run of so many steps computes.

        Raises:
          UserError: bf16 was asked of a model that has no field `dtype`.
        """
        return Program(
            self.compute_model(),
            self.task,
            self.optimizer.build(steps),
            self.data.device_transforms,
            self.accumulate,
            self.compiler_options,
        )


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment with the file that it was read from."""

    name: str
    experiment: Experiment
    path: Path
    siblings: tuple[Path, ...] = ()
    """Other files of the same folder that it imports."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """What `jdl tune` may vary: dimensions of `jdl.search` by path."""
    constraints: tuple[Callable[[Mapping[str, Any]], bool], ...] = ()
    """Functions that must be true of what it varies, given its values by path."""


def load(name: str | Path) -> ExperimentFile:
    """Reads an experiment.

    The file is run as any Python script; while it loads, its own folder is importable.

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
    """The file of an experiment; see `load`."""
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
    package = Path(__file__).parent
    # In a wheel the files lie inside the package, in a checkout beside it.
    shipped = package / "experiments"
    shipped = shipped if shipped.is_dir() else package.parent / "experiments"
    found: dict[str, Path] = {}
    for folder in (Path("experiments"), shipped):
        for path in sorted(folder.glob("[!_]*.py")):
            found.setdefault(path.stem, path)
    return found


@dataclass(frozen=True)
class Expectation:
    """The result that an experiment's docstring promises."""

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
    """The docstring of an experiment file, read without running it."""
    try:
        return ast.get_docstring(ast.parse(path.read_text())) or ""
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error


def expectation(path: Path) -> Expectation | None:
    """The promise in the `Expect:` line of an experiment file, if it has one."""
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
    """Makes a folder importable and lists what was imported from it.

    Those modules are then known by names of their own, since another folder may hold files that
    are called the same.
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
    """Registers a module and what it defines under another name."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) == module.__name__:
            with contextlib.suppress(AttributeError, TypeError):
                value.__module__ = name
    module.__name__ = name
    sys.modules[name] = module
