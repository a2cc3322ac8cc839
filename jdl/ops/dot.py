"""Matrix products, in the fastest form that the platform of a program has."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jdl.ops import onednn
from jdl.ops.platforms import bind

Array = jax.Array


def dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, *args: Any, **options: Any
) -> Array:
    """`jax.lax.dot_general`, faster on CPUs for dense layers.

    On CPUs the leading axes of the input are flattened and the product is `product`'s: with several
    leading axes, XLA transposes the operands of the kernel's gradient before it multiplies them.
    Other products and other platforms are passed through. Use it as
    `flax.linen.Dense(dot_general=...)`. Forward and reverse mode are supported.

    Args:
      lhs: (..., inputs).
      rhs: (inputs, features), or (features, inputs) as in a tied embedding.
      dimension_numbers: as in `jax.lax.dot_general`.
      *args: further positional arguments of `jax.lax.dot_general`.
      **options: further keyword arguments.

    Returns:
      (..., features).
    """
    (left, right), batch = dimension_numbers
    dense = lhs.ndim > 1 and rhs.ndim == 2 and tuple(left) == (lhs.ndim - 1,) and len(right) == 1
    if not dense or any(map(len, batch)):
        return lax.dot_general(lhs, rhs, dimension_numbers, *args, **options)
    static = {"axis": int(right[0]), "args": args, **options}
    return lax.platform_dependent(
        lhs, rhs, cpu=bind(_flat, **static), default=bind(_dense, **static)
    )


def _dense(lhs: Array, rhs: Array, axis: int, args: tuple[Any, ...], **options: Any) -> Array:
    return lax.dot_general(lhs, rhs, _contract(lhs.ndim - 1, axis), *args, **options)


def _flat(lhs: Array, rhs: Array, axis: int, args: tuple[Any, ...], **options: Any) -> Array:
    rows = lhs.reshape(-1, lhs.shape[-1])
    usual = not args and all(value is None for value in options.values())
    same = lhs.dtype == rhs.dtype
    flat = (
        product(rows, rhs, (1, axis))
        if usual and same
        else _dense(rows, rhs, axis, args, **options)
    )
    return flat.reshape(*lhs.shape[:-1], rhs.shape[1 - axis])


def product(lhs: Array, rhs: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    """The product of two matrices, faster on CPUs.

    When a program is lowered for one CPU device, a product of float32 with at least `LEAST`
    multiplications is oneDNN's, with the extra `onednn` and a C++ compiler; otherwise, and on other
    platforms, it is `jax.lax.dot_general`. Forward and reverse mode of any order are supported.
    `python -m benchmarks.operations` compares both.

    Args:
      lhs: a matrix.
      rhs: a matrix of the same dtype.
      axes: the axis of `lhs` and that of `rhs` over which products are summed.

    Returns:
      A matrix over the other axis of `lhs` and the other axis of `rhs`.
    """
    return product_p.bind(lhs, rhs, dimension_numbers=_contract(*axes))


LEAST = 1 << 23
"""Multiplications of the smallest product for which calling oneDNN pays, since XLA fuses what
follows a product of its own."""

product_p = Primitive("dot_general_of_matrices")  # the parameters of jax.lax.dot_general_p


def _contract(left: int, right: int) -> Any:
    return (((left,), (right,)), ((), ()))


def _shape(a: Any, b: Any, dimension_numbers: Any) -> tuple[int, int]:
    ((left,), (right,)), _ = dimension_numbers
    return a.shape[1 - left], b.shape[1 - right]


def _lower(ctx: Any, a: Any, b: Any, dimension_numbers: Any) -> Any:
    """Lowers a product for a CPU: to oneDNN's, or to XLA's."""
    x, y = ctx.avals_in
    ((left,), (right,)), _ = dimension_numbers
    served = onednn.is_alone(ctx.module_context) and x.dtype == y.dtype == np.float32
    # The size is known: a program whose rows are symbols is exported, not alone.
    if served and x.size * y.shape[1 - right] >= LEAST and onednn.library() is not None:
        call = jax.ffi.ffi_lowering(onednn.PRODUCT)
        return call(ctx, a, b, transpose_left=left == 0, transpose_right=right == 1)
    form = mlir.lower_fun(lax.dot_general, multiple_results=False)
    return form(ctx, a, b, dimension_numbers=dimension_numbers)


def _batch(arguments: Any, axes: Any, dimension_numbers: Any) -> Any:
    """`jax.vmap`: rows join the matrix where the other is shared, else XLA's batched product."""
    (a, b), ((left,), (right,)) = arguments, dimension_numbers[0]
    if axes[1] is None and left == 1:
        a = jnp.moveaxis(a, axes[0], 0)
        rows = product(a.reshape(-1, a.shape[-1]), b, (1, right))
        return rows.reshape(*a.shape[:2], rows.shape[-1]), 0
    form = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers)
    return jax.vmap(form, in_axes=axes)(a, b), 0


def _left(g: Array, a: Any, b: Array, dimension_numbers: Any) -> Array:
    """Returns the cotangent of the left operand, with its axes."""
    del a
    ((left,), (right,)), _ = dimension_numbers
    return product(g, b, (1, 1 - right)) if left == 1 else product(b, g, (1 - right, 1))


def _right(g: Array, a: Array, b: Any, dimension_numbers: Any) -> Array:
    del b
    ((left,), (right,)), _ = dimension_numbers
    return product(a, g, (1 - left, 0)) if right == 0 else product(g, a, (0, 1 - left))


def products_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy of `jax.checkpoint` that stores products, as `jax.checkpoint_policies.dots_saveable`.

    That does not know `product`.
    """
    return primitive in (lax.dot_general_p, product_p)


@functools.cache
def _compiled(dimension_numbers: Any) -> Any:
    return jax.jit(functools.partial(product_p.bind, dimension_numbers=dimension_numbers))


def _rules() -> None:
    """Registers how the primitive is evaluated, differentiated, batched and lowered."""
    product_p.def_impl(lambda a, b, dimension_numbers: _compiled(dimension_numbers)(a, b))
    product_p.def_abstract_eval(
        lambda a, b, dimension_numbers: a.update(shape=_shape(a, b, dimension_numbers))
    )
    batching.primitive_batchers[product_p] = _batch
    mlir.register_lowering(product_p, mlir.lower_fun(lax.dot_general, multiple_results=False))
    mlir.register_lowering(product_p, _lower, platform="cpu")
    ad.defbilinear(product_p, _left, _right)


_rules()
