"""Convolution of images as one matrix product where that is faster."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Array = jax.Array

NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, as one matrix product on CPUs.

    There, the gradients of XLA's convolutions run at a quarter of a product's speed or less; here
    the shifted images are laid side by side along the channels (im2col; Chellapilla et al., 2006),
    and the kernel's gradient is one more product with them. The input's is a convolution with the
    turned kernel, in the one form of those that XLA does fast. Groups, dilated inputs and what is
    not an image batch (NHWC) go to XLA, as everything does on other platforms. For
    `flax.linen.Conv(conv_general_dilated=...)`. `jax.jvp` works.

    Args:
      lhs: (batch, height, width, channels).
      rhs: (rows, columns, channels, outputs).
      window_strides: of the output, in pixels.
      padding: `SAME`, `VALID`, or pixels before and after along height and width.
      lhs_dilation: spreads the input, which makes a transposed convolution.
      rhs_dilation: spreads the kernel.
      dimension_numbers: as in `jax.lax`.
      feature_group_count: as in `jax.lax`.
      **options: further options of `jax.lax.conv_general_dilated`.

    Returns:
      (batch, height', width', outputs).
    """
    plain = (
        lhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        and all(step == 1 for step in lhs_dilation or ())
        and feature_group_count == options.get("batch_group_count", 1) == 1
    )
    if not plain or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        reach = [(size - 1) * step + 1 for size, step in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, window_strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    kept = {name: options.get(name) for name in ("precision", "preferred_element_type")}
    return _product(Window(tuple(window_strides), pads, dilation, **kept), lhs, rhs)


class Window(NamedTuple):
    """How a kernel moves over images."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: Any = None
    preferred_element_type: Any = None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(window: Window, x: Array, kernel: Array) -> Array:
    return _multiply(window, _patches(window, x, kernel.shape[:2]), kernel)


def _multiply(window: Window, patches: Array, kernel: Array) -> Array:
    flat = kernel.reshape(-1, kernel.shape[-1])
    options = {
        "precision": window.precision,
        "preferred_element_type": window.preferred_element_type,
    }
    return jnp.matmul(patches, flat, **options)


def _tangent(window: Window, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Terms written as transposes, so that reverse mode has the products as they stand here."""
    (x, kernel), (dx, dk) = primals, tangents
    patches = _patches(window, x, kernel.shape[:2])
    y = _multiply(window, patches, kernel)

    def of_kernel(gradient: Array) -> Array:
        rows = gradient.reshape(-1, gradient.shape[-1]).astype(x.dtype)
        product = jnp.matmul(
            patches.reshape(-1, patches.shape[-1]).T, rows, precision=window.precision
        )
        return product.reshape(kernel.shape)

    def of_input(gradient: Array) -> Array:
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        reach = zip(kernel.shape[:2], window.dilation, window.padding, strict=True)
        padding = [((n - 1) * d - before, (n - 1) * d - after) for n, d, (before, after) in reach]
        return lax.conv_general_dilated(
            gradient.astype(x.dtype),
            turned,
            (1, 1),
            padding,
            rhs_dilation=window.dilation,
            dimension_numbers=NHWC,
            precision=window.precision,
        )

    tangent = jnp.zeros_like(y)
    if not isinstance(dk, SymbolicZero):
        tangent += jax.linear_transpose(of_kernel, y)(dk)[0]
    if not isinstance(dx, SymbolicZero) and window.strides == (1, 1):
        tangent += jax.linear_transpose(of_input, y)(dx)[0]
    elif not isinstance(dx, SymbolicZero):
        tangent += _multiply(window, _patches(window, dx, kernel.shape[:2]), kernel)
    return y, tangent


_product.defjvp(_tangent, symbolic_zeros=True)


def _patches(window: Window, x: Array, shape: tuple[int, ...]) -> Array:
    """(batch, height', width', rows * columns * channels): what each output pixel sees."""
    strides, padding, dilation, *_ = window
    if any(before or after for before, after in padding):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
    size = [
        max((n - (w - 1) * d - 1) // s + 1, 0)
        for n, w, d, s in zip(x.shape[1:3], shape, dilation, strides, strict=True)
    ]

    def shifted(*begin: int) -> Array:
        rows, columns = (
            slice(b * d, b * d + max((n - 1) * s + 1, 0), s)
            for b, d, n, s in zip(begin, dilation, size, strides, strict=True)
        )
        return x[:, rows, columns]

    each = [shifted(i, j) for i in range(shape[0]) for j in range(shape[1])]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=-1)
