"""Learning rate multipliers per module, and frozen modules."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jdl.errors import UserError
from jdl.paths import check_modules, path_name, within
from jdl.typing import PyTree


def scale_modules(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Scales the updates of each listed module by its factor.

    Args:
      multipliers: (module path, factor); the longest matching path wins.

    Raises:
      UserError: from `init`, if a module does not exist.
    """
    factors = dict(multipliers)

    def init(params: PyTree) -> optax.EmptyState:
        check_modules(_paths(params), factors)
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params

        def scale(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
            found = [name for name in factors if within(path_name(path), (name,))]
            return leaf * factors[max(found, key=len)] if found else leaf

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def layer_decay(*layers: str | Sequence[str], decay: float) -> tuple[tuple[str, float], ...]:
    """Returns `lr_multipliers` that fall by a factor from layer to layer, toward the input.

    Fine-tuning then changes early layers less than late ones (Howard and Ruder, 2018; Clark et al.,
    2020).

    Args:
      *layers: paths of modules, from the input to the output; several share one layer. The factor
        of the last is `decay`, and that of modules which are not listed, such as a new head, 1.
      decay: the factor between two layers, in (0, 1].

    Raises:
      UserError: `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay needs a decay above 0 and at most 1, not {decay}")
    found = []
    for distance, names in enumerate(reversed(layers), start=1):
        names = (names,) if isinstance(names, str) else names
        found += [(name, decay**distance) for name in names]
    return tuple(found)


def freeze(
    method: optax.GradientTransformationExtraArgs,
    names: tuple[str, ...] = (),
    is_frozen: Callable[[str], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies a method to all parameters except those of frozen modules, which never change.

    Args:
      method: of the others.
      names: paths of frozen modules.
      is_frozen: of a parameter's path, in place of `names`.

    Raises:
      UserError: from `init`, if a module does not exist or all are frozen.
    """
    is_frozen = is_frozen or functools.partial(within, modules=names)

    def labels(params: PyTree) -> PyTree:
        paths = _paths(params)
        check_modules(paths, names)
        if all(map(is_frozen, paths)):
            raise UserError("optimizer.frozen leaves nothing to train")

        def label(path: jax.tree_util.KeyPath, leaf: object) -> str:
            del leaf
            return "frozen" if is_frozen(path_name(path)) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    # Adding -0.0 changes no number, not even the sign of a zero.
    still = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -jnp.zeros_like(u), updates))
    return optax.partition({"trained": method, "frozen": still}, labels)


def _paths(params: PyTree) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
