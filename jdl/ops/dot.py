"""Products of dense layers."""

from typing import Any

import jax
from jax import lax

Array = jax.Array


def dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, *args: Any, **options: Any
) -> Array:
    """`jax.lax.dot_general`, on CPUs with all rows of a dense layer's input along one axis.

    Where its input has several axes of rows, XLA lays the operands of the kernel's gradient out
    anew before it multiplies them; with one axis it does not. For `flax.linen.Dense(dot_general=
    ...)`. All other products, and all on other platforms, go to XLA as they are. `jax.jvp` works.

    Args:
      lhs: (..., inputs).
      rhs: (inputs, outputs).
      dimension_numbers: as in `jax.lax`.
      *args: further arguments of `jax.lax.dot_general`.
      **options: the same, by name.

    Returns:
      (..., outputs).
    """
    dense = lhs.ndim > 2 and rhs.ndim == 2 and _plain(dimension_numbers, lhs.ndim)
    if not dense or jax.default_backend() != "cpu":
        return lax.dot_general(lhs, rhs, dimension_numbers, *args, **options)
    rows, plain = lhs.reshape(-1, lhs.shape[-1]), (((1,), (0,)), ((), ()))
    product = lax.dot_general(rows, rhs, plain, *args, **options)
    return product.reshape(*lhs.shape[:-1], rhs.shape[-1])


def _plain(dimension_numbers: Any, ndim: int) -> bool:
    (left, right), batch = dimension_numbers
    return tuple(left) == (ndim - 1,) and tuple(right) == (0,) and not any(map(len, batch))
