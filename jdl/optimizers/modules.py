"""Learning rate multipliers per module, and frozen modules."""

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


def freeze(
    method: optax.GradientTransformationExtraArgs, names: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
    """Applies a method to all parameters except those of frozen modules, which never change.

    Raises:
      UserError: from `init`, if a module does not exist or all are frozen.
    """

    def labels(params: PyTree) -> PyTree:
        paths = _paths(params)
        check_modules(paths, names)
        if all(within(path, names) for path in paths):
            raise UserError("optimizer.frozen leaves nothing to train")

        def label(path: jax.tree_util.KeyPath, leaf: object) -> str:
            del leaf
            return "frozen" if within(path_name(path), names) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    # Adding -0.0 changes no number, not even the sign of a zero.
    still = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -jnp.zeros_like(u), updates))
    return optax.partition({"trained": method, "frozen": still}, labels)


def _paths(params: PyTree) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
