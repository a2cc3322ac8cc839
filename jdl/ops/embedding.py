"""Table look-up whose gradient is a product where the table is small."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

SMALL = 512
"""Tables up to this many rows get their gradient from a product with one-hot rows."""


@jax.custom_vjp
def embedding(table: Array, ids: Array) -> Array:
    """The rows of a table at `ids`.

    Equal to `table[ids]`, whose gradient XLA adds up row by row; for a table of few rows one
    matrix product does. Reverse mode only: for `jax.jvp` use `table[ids]`.

    Args:
      table: (rows, features).
      ids: integers of any shape, each in [0, rows).

    Returns:
      (*ids.shape, features), dtype of `table`.
    """
    return table[ids]


def _forward(table: Array, ids: Array) -> tuple[Array, Any]:
    # What remains of the table is its shape and dtype.
    return table[ids], (ids, jnp.zeros((table.shape[0], 0), table.dtype))


def _backward(saved: Any, gradient: Array) -> tuple[Any, None]:
    ids, like = saved
    rows, features = like.shape[0], gradient.shape[-1]
    flat, gradient = ids.reshape(-1), gradient.reshape(-1, features)
    if rows <= SMALL:
        known = (flat[:, None] == jnp.arange(rows)).astype(gradient.dtype)
        product = jnp.einsum("nv,nd->vd", known, gradient, preferred_element_type=jnp.float32)
        return product.astype(like.dtype), None
    zero = jnp.zeros((rows, features), gradient.dtype)
    return zero.at[flat].add(gradient).astype(like.dtype), None


embedding.defvjp(_forward, _backward)
