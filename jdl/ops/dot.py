"""The matrix product of dense layers."""

from typing import Any

import jax
from jax import lax

from jdl.ops.platforms import bind

Array = jax.Array


def dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, *args: Any, **options: Any
) -> Array:
    """`jax.lax.dot_general`, on CPUs with the leading axes of a dense layer's input flattened.

    With several leading axes, XLA transposes the operands of the kernel's gradient before it
    multiplies them; with one it does not. Other products and other platforms are passed through.
    Use it as `flax.linen.Dense(dot_general=...)`. Forward and reverse mode are supported.

    Args:
      lhs: (..., inputs).
      rhs: (inputs, features).
      dimension_numbers: as in `jax.lax.dot_general`.
      *args: further positional arguments of `jax.lax.dot_general`.
      **options: further keyword arguments.

    Returns:
      (..., features).
    """
    dense = lhs.ndim > 2 and rhs.ndim == 2 and _plain(dimension_numbers, lhs.ndim)
    if not dense:
        return lax.dot_general(lhs, rhs, dimension_numbers, *args, **options)
    plain, flat = bind(_dense, args=args, **options), bind(_flat, args=args, **options)
    return lax.platform_dependent(lhs, rhs, cpu=flat, default=plain)


def _dense(lhs: Array, rhs: Array, args: tuple[Any, ...], **options: Any) -> Array:
    return lax.dot_general(lhs, rhs, (((lhs.ndim - 1,), (0,)), ((), ())), *args, **options)


def _flat(lhs: Array, rhs: Array, args: tuple[Any, ...], **options: Any) -> Array:
    product = _dense(lhs.reshape(-1, lhs.shape[-1]), rhs, args, **options)
    return product.reshape(*lhs.shape[:-1], rhs.shape[-1])


def _plain(dimension_numbers: Any, ndim: int) -> bool:
    """Whether the product contracts the last axis of `lhs` with the first of `rhs`, unbatched."""
    (left, right), batch = dimension_numbers
    return tuple(left) == (ndim - 1,) and tuple(right) == (0,) and not any(map(len, batch))
