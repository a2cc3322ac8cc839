"""Experiment and Runtime: the configuration of a training run."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import optax

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.hooks import (
    Checkpoint,
    Evaluate,
    Hook,
    Progress,
    RetraceWarning,
    TensorBoard,
)
from jdl.layers import LoRA
from jdl.optimizers import Adam, Optimizer
from jdl.optimizers.modules import freeze
from jdl.parallel import DataParallel, Strategy
from jdl.paths import within
from jdl.pretrained import InitFrom
from jdl.step import Program
from jdl.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Settings of speed and logging, which do not change what is learned.

    A resumed run may change them all.
    """

    workers: int = 0  # processes that read ahead under Grain; 0: threads of this process
    log_every: int = 100  # steps between training rows, each the mean over its steps
    steps_per_execution: int = 1  # steps in one call to the device
    malloc_arenas: int = 1  # of glibc on CPUs; 0, one a thread, suits steps below 50 ms

    def __post_init__(self) -> None:
        least = {"workers": 0, "log_every": 1, "steps_per_execution": 1, "malloc_arenas": 0}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise UserError(f"runtime.{name} must be at least {smallest}, not {value}")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The complete definition of a training run.

    All fields but `strategy`, `hooks` and `runtime` determine the result.
    """

    model: nn.Module = field(kw_only=False)  # the network
    task: Task = Classification()  # the loss, metrics and predictions
    data: Data  # the data set with its transforms
    optimizer: Optimizer | optax.GradientTransformation = Adam(1e-3)  # the update rule
    strategy: Strategy = DataParallel()  # how arrays are sharded over devices
    hooks: tuple[Hook, ...] = (
        Progress(),
        TensorBoard(),
        Evaluate(),
        Checkpoint(),
        RetraceWarning(),
    )  # called after every step, in this order
    init_from: InitFrom = InitFrom()  # weights to initialize from
    epochs: float | None = None  # passes over the training split
    steps: int | None = None  # optimizer steps; overrides epochs
    batch_size: int = 32  # examples per optimizer step, over all devices
    num_microbatches: int = 1  # parts in which a batch is computed; changes memory, not results
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; parameters are fp32
    compiler_options: tuple[tuple[str, str], ...] = ()  # of XLA, as (name, value)
    stop_after_skipped: int = 10  # skipped non-finite steps in a row that end the run
    final_train_evaluation: bool | None = None  # score train at the end; None: if it is in memory
    seed: int = 0  # of initial parameters, order of examples, dropout and augmentation
    runtime: Runtime = Runtime()  # speed and logging

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("batch_size", "num_microbatches", "stop_after_skipped"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("epochs", "steps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} must be positive, not {value}")
        if self.epochs is None and self.steps is None:
            raise UserError("an experiment needs epochs or steps; neither was given")
        if self.batch_size % self.num_microbatches:
            raise UserError(
                f"batch_size {self.batch_size} cannot be split into {self.num_microbatches} equal "
                f"micro-batches (num_microbatches)"
            )
        if self.data.required_batch_size not in (None, self.batch_size):
            raise UserError(
                f"the order of the data fits batches of {self.data.required_batch_size}, not of "
                f"{self.batch_size}: set batch_size, or data.num_streams"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be between 0 and 2^63 - 1, not {self.seed}")
        rate = getattr(self.model, "dropout_rate", None)
        if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
            raise UserError(f"model.dropout_rate must be in [0, 1], not {rate}")
        if isinstance(self.model, LoRA) and getattr(self.optimizer, "frozen", ()):
            raise UserError(
                "optimizer.frozen: a model with LoRA freezes all but model.trained already: set it "
                "to ()"
            )
        # Frozen, but not yet in anyone's hands.
        object.__setattr__(self, "task", _with_array_names(self.task, self.data))

    def _check_types(self) -> None:
        """Raises a UserError with the remedy for a field that holds another kind of object."""
        expected: dict[str, tuple[Any, str]] = {
            "model": (nn.Module, "a Flax linen module"),
            "task": (Task, "a task such as Classification()"),
            "data": (Data, 'a data set such as Arrays({"train": {"image": x, "label": y}})'),
            "optimizer": (
                (Optimizer, optax.GradientTransformation),
                "an optimizer such as Adam(1e-3), or an Optax transformation",
            ),
            "strategy": (Strategy, "a strategy such as DataParallel()"),
            "init_from": (InitFrom, "an InitFrom"),
            "runtime": (Runtime, "a Runtime"),
        }
        for name in ("epochs", "steps", "batch_size", "num_microbatches", "seed"):
            kind = numbers.Real if name == "epochs" else numbers.Integral
            value, optional = getattr(self, name), name in ("epochs", "steps")
            if not (isinstance(value, kind) or (value is None and optional)):
                what = "a number" if name == "epochs" else "a whole number"
                raise UserError(f"{name} must be {what}, not {value!r}")
        for name, (kind, remedy) in expected.items():
            value = getattr(self, name)
            if isinstance(value, type):
                raise UserError(
                    f"{name} is the class {value.__name__}, not an instance: write "
                    f"{value.__name__}(...)"
                )
            if not isinstance(value, kind):
                raise UserError(f"{name} must be {remedy}, not {_foreign(value)}")
        for index, hook in enumerate(self.hooks):
            if not isinstance(hook, Hook):
                given = f"{hook.__name__}()" if isinstance(hook, type) else "a Hook of jdl.hooks"
                raise UserError(f"hooks.{index} must be {given}, not {_foreign(hook)}")

    def total_steps(self, examples: int) -> int:
        """Steps of the whole run over a training split of this size."""
        return self.steps or math.ceil((self.epochs or 0) * examples / self.batch_size)

    def compute_model(self) -> nn.Module:
        """The model with its `dtype`, and those of modules in its fields, set to the precision.

        Raises:
          UserError: precision is bf16 and the model has no field `dtype`.
        """
        return self.model if self.precision == "fp32" else _in_dtype(self.model, jnp.bfloat16)

    def transformation(self, steps: int) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation of `optimizer` for a run of `steps` optimizer steps."""
        if isinstance(self.optimizer, Optimizer):
            built = self.optimizer.build(steps)
        else:
            built = optax.with_extra_args_support(self.optimizer)
        if isinstance(self.model, LoRA):
            return freeze(built, is_frozen=self.model.is_frozen)
        return built

    @property
    def is_frozen(self) -> Callable[[str], bool] | None:
        """Whether the parameter at a path is never trained; None: all are."""
        names = getattr(self.optimizer, "frozen", ())
        if isinstance(self.model, LoRA):
            return self.model.is_frozen
        return functools.partial(within, modules=names) if names else None

    def program(self, steps: int) -> Program:
        """The computation of one training step.

        Args:
          steps: optimizer steps of the whole run, for the schedule.

        Raises:
          UserError: precision is bf16 and the model has no field `dtype`.
        """
        return Program(
            self.compute_model(),
            self.task,
            self.transformation(steps),
            self.data.device_transforms,
            self.num_microbatches,
            self.compiler_options,
            self.is_frozen,
        )


def _in_dtype(module: nn.Module, dtype: Any) -> nn.Module:
    """Returns a module that computes in a dtype, as do the modules in its fields.

    Raises:
      UserError: one has neither a field `dtype` nor such modules.
    """
    names = {each.name for each in dataclasses.fields(module)} - {"parent", "name"}
    values = {name: getattr(module, name) for name in names}
    changes: dict[str, Any] = {
        name: _in_dtype(value, dtype)
        for name, value in values.items()
        if isinstance(value, nn.Module)
    }
    if "dtype" in names:
        changes["dtype"] = dtype
    if not changes:
        raise UserError(
            f"precision bf16 needs a model with a field dtype, which {type(module).__name__} does "
            f"not have"
        )
    return module.clone(**changes)


def _foreign(value: Any) -> str:
    """Describes an object of another library, with what to do about the usual ones."""
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
    if any(kind.startswith("flax.nnx.") for kind in kinds):
        return (
            f"the nnx module {type(value).__name__}: wrap its class, as in "
            f"flax.nnx.bridge.to_linen({type(value).__name__}, ...)"
        )
    if any(kind.startswith("torch.nn.") for kind in kinds):
        return (
            f"the PyTorch module {type(value).__name__}: jdl trains Flax modules, so write its "
            f"layers in flax.linen"
        )
    text = " ".join(str(value).split())
    return f"{type(value).__name__} {text[:40]!r}"


def _with_array_names(task: Task, data: Data) -> Task:
    """Returns the task reading the arrays that the data set names, where it has a base default."""
    changes = {}
    for name, own, array in zip(
        ("inputs", "targets"), (Task.inputs, Task.targets), data.array_names, strict=True
    ):
        if getattr(task, name) == own and array != own:
            changes[name] = array
    return replace(task, **changes) if changes else task
