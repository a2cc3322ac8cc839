"""Observes, while modules are traced, which variables are sown and which layers are active."""

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.errors import UserError, nearest
from jdl.layers import Dropout
from jdl.paths import path_name
from jdl.typing import PyTree

Path = tuple[str, ...]

_UNOBSERVED: ContextVar[bool] = ContextVar("unobserved", default=False)


@dataclass
class Observed:
    """What modules did while they were traced.

    Attributes:
      sown: path of each variable that `sow` or `perturb` wrote, its collection first.
      layers: whether each dropout or batch normalization layer, by its path, was ever active.
      kinds: the class of each.
    """

    sown: set[Path] = field(default_factory=set)
    layers: dict[Path, bool] = field(default_factory=dict)
    kinds: dict[Path, type] = field(default_factory=dict)


@contextlib.contextmanager
def observe() -> Iterator[Observed]:
    """Observes the modules that are called in its context, at no cost at run time."""
    observed = Observed()

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if module.scope is None or _UNOBSERVED.get():
            return call(*args, **kwargs)
        # Attributes of this object alone, which hide the methods of its class.
        object.__setattr__(module, "sow", _recording_sow(module, observed.sown))
        object.__setattr__(module, "perturb", _recording_perturb(module, observed.sown))
        active = _is_active(module, args, kwargs) if context.method_name == "__call__" else None
        if active is not None:
            observed.layers[module.path] = active or observed.layers.get(module.path, False)
            observed.kinds[module.path] = type(module)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield observed


@dataclass
class CapturedInput:
    """What a layer was given while modules were traced."""

    layer: str
    values: list[Any] = field(default_factory=list)
    paths: dict[str, None] = field(default_factory=dict)  # of all modules that were called

    def value(self) -> jax.Array:
        """Returns the first argument of the layer's last call.

        Raises:
          UserError: it was not called.
        """
        if not self.values:
            known = ", ".join(path for path in self.paths if path and "." not in path)
            raise UserError(
                f"the model has no layer {self.layer!r} (it has {known})"
                f"{nearest(self.layer, self.paths)}"
            )
        return self.values[-1]


@contextlib.contextmanager
def capture_input(layer: str) -> Iterator[CapturedInput]:
    """Captures what the module of a path is given in its context."""
    captured = CapturedInput(layer)

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and not _UNOBSERVED.get():
            path = ".".join(context.module.path)
            captured.paths[path] = None
            if path == layer and args:
                captured.values.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield captured


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Leaves out the modules that are called in its context, such as networks that do not train."""
    token = _UNOBSERVED.set(True)
    try:
        yield
    finally:
        _UNOBSERVED.reset(token)


def without_sown(collections: Mapping[str, PyTree], sown: set[Path]) -> dict[str, PyTree]:
    """Returns the collections without the variables at some paths; empty ones are dropped."""
    return {name: tree for name, tree in _without(collections, sown, ()).items() if tree}


def check_variables(new: Mapping[str, PyTree], old: Mapping[str, PyTree]) -> None:
    """Checks that a training step leaves a model the variables that it had.

    Raises:
      UserError: it has other variables, or of another shape or dtype.
    """
    after, before = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (new, old)
    )
    for path, leaf in after.items():
        if path not in before:
            raise UserError(
                f"the variable {path} is created in training only: create it in evaluation, too, "
                f"since that initializes the model"
            )
        kinds = [(jnp.shape(x), jnp.result_type(x)) for x in (leaf, before[path])]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"training makes the variable {path} {kinds[0][1]}{list(kinds[0][0])}, which is "
                f"{kinds[1][1]}{list(kinds[1][0])} at first: keep its shape and dtype"
            )
    if missing := before.keys() - after.keys():
        raise UserError(f"training drops the variable {min(missing)}: return all collections")


def check_active(observed: Observed, allowed: tuple[str, ...], model: nn.Module) -> None:
    """Checks the layers of a model that was traced in training.

    Args:
      observed: what the model did.
      allowed: paths of layers that may be inactive, such as `backbone/*`.
      model: the model.

    Raises:
      UserError: a dropout layer never drops, or a batch normalization never updates its statistics.
    """
    for path, active in observed.layers.items():
        name = "/".join(path) or type(model).__name__
        if active or any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
            continue
        kind = observed.kinds[path]
        effect, argument = "drops nothing", "deterministic"
        if issubclass(kind, nn.BatchNorm):
            effect, argument = "never updates its statistics", "use_running_average"
        raise UserError(
            f"{name} ({kind.__name__}) of {type(model).__name__} {effect} in training: give it "
            f"{argument}=not train, where train is an argument of the model's __call__ (training, "
            f"is_training, deterministic and use_running_average are understood as well), or list "
            f"it in task.inactive_layers if that is meant"
        )


def _is_active(module: nn.Module, args: Any, kwargs: Any) -> bool | None:
    """Whether a layer acts as in training; None for other modules, and dropout of rate 0."""
    if isinstance(module, nn.BatchNorm):
        off = _argument(module, "use_running_average", args, kwargs)
    elif isinstance(module, (nn.Dropout, Dropout)):
        off = _argument(module, "deterministic", args, kwargs)
        if isinstance(module.rate, (int, float)) and module.rate == 0:
            return None
    elif isinstance(module, nn.MultiHeadDotProductAttention) and module.dropout_rate:
        off = _argument(module, "deterministic", (), kwargs)
    else:
        return None
    # A traced value may be either.
    return not off if off is None or isinstance(off, (bool, int)) else True


def _argument(module: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Returns an argument that is given to the call, second in order, or else as a field."""
    given = kwargs.get(name, args[1] if len(args) > 1 else None)
    return getattr(module, name) if given is None else given


def _recording_sow(module: nn.Module, sown: set[Path]) -> Any:
    def sow(collection: str, name: str, *args: Any, **kwargs: Any) -> bool:
        sown.add((collection, *module.path, name))
        return type(module).sow(module, collection, name, *args, **kwargs)

    return sow


def _recording_perturb(module: nn.Module, sown: set[Path]) -> Any:
    def perturb(name: str, value: Any, collection: str = "perturbations") -> Any:
        sown.add((collection, *module.path, name))
        return type(module).perturb(module, name, value, collection)

    return perturb


def _without(tree: Any, sown: set[Path], path: Path) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    kept = {
        key: _without(child, sown, (*path, key))
        for key, child in tree.items()
        if (*path, key) not in sown
    }
    # A module of which all variables were sown leaves nothing.
    return {key: child for key, child in kept.items() if not isinstance(child, Mapping) or child}
