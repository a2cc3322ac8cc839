"""Applies Flax modules: their mode, random streams, variables and errors."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from flax.errors import InvalidRngError, ModifyScopeVariableError
from flax.traverse_util import flatten_dict

from jdl.errors import UserError, first_line, nearest
from jdl.tracing import errors_of, mode_arguments, takes_argument
from jdl.typing import Key, Keys, PyTree


def forward(
    model: nn.Module,
    params: PyTree,
    collections: Mapping[str, PyTree],
    *inputs: Any,
    train: bool,
    key: Key | None = None,
    method: str = "__call__",
    rngs: Mapping[str, Key | Keys] | None = None,
    capture: Collection[str] = (),
    **named: Any,
) -> tuple[Any, dict[str, PyTree]]:
    """Applies a Flax module.

    Args:
      model: receives the mode under the names that its method takes: `train`, `training` and
        `is_training`, or the opposite, `deterministic` and `use_running_average`.
      params: the trainable variables.
      collections: the other variables, such as `batch_stats`. One that is empty is returned with
        what the module sows into it; values sown into others are dropped.
      *inputs: positional inputs of the method.
      train: whether dropout is active and running statistics are updated.
      key: for the `dropout` RNG stream, needed only with `train`. Streams of other names are made
        of it, too.
      method: name of the module's method.
      rngs: further RNG streams by name, in evaluation too. A key (), of which the draws depend on
        the other rows, devices and micro-batches, like dropout's. Or one key per row
        (`jdl.tasks.row_keys`), of which they do not: the method is then applied to each row apart,
        with dropout of that row's key, and cannot change collections, as batch normalization does.
      capture: paths of submodules whose outputs are returned as the collection `intermediates`, as
        of Flax's `capture_intermediates`.
      **named: keyword inputs; those that the method does not take are dropped.

    Returns:
      The module's output and the updated collections.

    Raises:
      UserError: the module fails on these inputs.
    """
    named = {name: value for name, value in named.items() if takes_argument(model, name, method)}
    modes = mode_arguments(model, train, method)
    variables, rngs = {"params": params, **collections}, dict(rngs or {})
    by_row = {name: keys for name, keys in rngs.items() if jnp.ndim(keys)}
    with _model_errors(model, inputs, train):
        if by_row:
            apply = functools.partial(model.apply, variables, method=method, **modes)
            return _by_row(apply, inputs, named, rngs, by_row, train), dict(collections)
        mutable = [name for name, tree in collections.items() if train or not tree]
        if train and key is not None:
            rngs = {**_streams(key), **rngs}
        if capture:
            mutable, named = [*mutable, "intermediates"], {**named, **_captured(capture)}
        output, changed = model.apply(
            variables, *inputs, rngs=rngs or None, mutable=mutable, method=method, **named, **modes
        )
    return output, {**collections, **changed}


def _streams(key: Key) -> dict[str, Any]:
    """Returns the RNG streams of training."""
    # For a stream that is not given, Flax draws from `params`; lazily, so that no key is made where
    # none does.
    return {"dropout": key, "params": LazyRng.create(key, "streams")}


def _captured(paths: Collection[str]) -> dict[str, Any]:
    """Returns the argument of `Module.apply` that captures the outputs of submodules."""

    def is_wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and ".".join(module.path) in paths

    return {"capture_intermediates": is_wanted}


def intermediates(
    collections: Mapping[str, PyTree], modules: Sequence[str], params: PyTree, where: str
) -> list[jax.Array]:
    """Returns the outputs of submodules, of several calls those of the last.

    Args:
      collections: as `forward` returns them with `capture`.
      modules: the paths that were captured.
      params: of the module, whose names an error lists.
      where: what the module is, for the error.

    Raises:
      UserError: the module calls no such submodule.
    """
    calls: Any = flatten_dict(collections.get("intermediates", {}), sep=".")
    for name in modules:
        if f"{name}.__call__" not in calls:
            raise UserError(
                f"{where} has no module {name!r} (it has {', '.join(params)})"
                f"{nearest(name, params)}"
            )
    return [calls[f"{name}.__call__"][-1] for name in modules]


def _by_row(
    apply: Callable[..., Any],
    inputs: tuple[Any, ...],
    named: Mapping[str, Any],
    rngs: Mapping[str, Key | Keys],
    by_row: Mapping[str, Keys],
    train: bool,
) -> Any:
    """Applies a module to each row apart, with its keys."""

    def one(inputs: tuple[Any, ...], named: Mapping[str, Any], own: Mapping[str, Key]) -> Any:
        first = next(iter(own.values()))
        streams = _streams(jax.random.fold_in(first, 1)) if train else {}
        inputs, named = jax.tree.map(lambda x: x[None], (inputs, dict(named)))
        output = apply(*inputs, rngs={**streams, **rngs, **own}, **named)
        return jax.tree.map(lambda x: x[0], output)

    return jax.vmap(one)(inputs, named, by_row)


def initialize(model: nn.Module, key: Key, *inputs: Any, **named: Any) -> dict[str, PyTree]:
    """Returns the variables of a Flax module, called in evaluation mode.

    Args:
      model: receives its mode as in `forward`.
      key: for all its random streams.
      *inputs: positional inputs of its `__call__`.
      **named: keyword inputs.

    Raises:
      UserError: the module fails on these inputs.
    """
    with _model_errors(model, inputs, train=False):
        return dict(model.init(key, *inputs, **mode_arguments(model, False), **named))


def sown_terms(collections: Mapping[str, PyTree], names: tuple[str, ...], rows: int) -> jax.Array:
    """Returns the sum of all values that a module has sown into collections.

    Args:
      collections: as `forward` returns them.
      names: of the collections.
      rows: examples of the batch.

    Raises:
      UserError: nothing was sown, or one value per example.
    """
    total = jnp.zeros(())
    for name in names:
        leaves = jax.tree.leaves(collections[name])
        if not leaves:
            raise UserError(
                f"task.sown_losses names {name!r}, into which the model sows nothing: call "
                f"self.sow({name!r}, ...) in it, or leave the name out"
            )
        for leaf in leaves:
            if jnp.ndim(leaf) and leaf.shape[0] == rows:
                raise UserError(
                    f"the model sows an array of shape {leaf.shape} into {name!r}: sow one number "
                    f"for the batch, such as the mean over its rows"
                )
            total += jnp.sum(leaf)
    return total


@contextlib.contextmanager
def _model_errors(model: nn.Module, inputs: tuple[Any, ...], train: bool) -> Iterator[None]:
    """Converts errors of a module into UserError.

    Raises:
      UserError: the module failed.
    """
    name, mode = type(model).__name__, "training" if train else "evaluation"
    shapes = ", ".join(str(jnp.shape(x)) for x in jax.tree.leaves(inputs))
    with errors_of(f"the model {name} cannot take inputs of shape {shapes} in {mode}"):
        try:
            yield
        except InvalidRngError as error:
            raise UserError(
                f"{name} draws random numbers in {mode}, where it gets none: let it draw only if "
                f"the argument train of its __call__ is true ({first_line(error)})"
            ) from error
        except ModifyScopeVariableError as error:
            raise UserError(
                f"{name} updates variables in {mode}, where they are fixed: let it update them "
                f"only if the argument train of its __call__ is true ({first_line(error)})"
            ) from error
