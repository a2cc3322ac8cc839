"""Gradients that tasks return to the update."""

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.paths import path_name
from jdl.typing import PyTree


def ascent(gradients: PyTree) -> PyTree:
    """Returns what `jax.grad` returns as directions of ascent: conjugate where it is complex."""
    return jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, gradients)


def check_dtypes(params: PyTree) -> None:
    """Raises a UserError for a parameter that has no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise UserError(
                f"the parameter {path_name(path)} is of dtype {leaf.dtype} and has no gradient: "
                f"make it float, or a variable of another collection"
            )
