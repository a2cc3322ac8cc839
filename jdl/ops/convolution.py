"""2D convolution as one matrix product where that is faster."""

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

    On CPUs, XLA's gradients of convolutions reach a quarter of the speed of a matrix product or
    less. This version concatenates the shifted images along the channels (im2col; Chellapilla et
    al., 2006), and the kernel's gradient is one more product with them. The input's gradient is a
    convolution with the flipped kernel, the one form that XLA computes fast. Groups, dilated
    inputs, layouts other than NHWC and other platforms use XLA's convolution. Pass it as
    `flax.linen.Conv(conv_general_dilated=...)`. Forward and reverse mode are supported.

    Args:
      lhs: (batch, height, width, channels).
      rhs: (rows, columns, channels, features).
      window_strides: along height and width, in pixels.
      padding: `SAME`, `VALID`, or pixels before and after along height and width.
      lhs_dilation: dilates the input, for a transposed convolution.
      rhs_dilation: dilates the kernel.
      dimension_numbers: as in `jax.lax`.
      feature_group_count: as in `jax.lax`.
      **options: further options of `jax.lax.conv_general_dilated`.

    Returns:
      (batch, height', width', features).
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
    """Strides, padding and dilation of a 2D convolution, and the precision of its product."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: Any = None
    preferred_element_type: Any = None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(window: Window, x: Array, kernel: Array) -> Array:
    return _multiply(window, _patches(window, x, kernel.shape[:2]), kernel)


def _multiply(window: Window, patches: Array, kernel: Array) -> Array:
    """(batch, height', width', features) of patches (batch, height', width', window)."""
    flat = kernel.reshape(
        -1, kernel.shape[-1]
    )  # (window, features), window = rows*columns*channels
    options = {
        "precision": window.precision,
        "preferred_element_type": window.preferred_element_type,
    }
    return jnp.matmul(patches, flat, **options)


def _tangent(window: Window, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Output and tangent.

    Reverse mode transposes each term of the tangent. They are therefore written as transposes of
    the products that the backward pass should run: transposing twice gives those back.
    """
    (x, kernel), (dx, dk) = primals, tangents
    patches = _patches(window, x, kernel.shape[:2])
    y = _multiply(window, patches, kernel)

    def of_kernel(gradient: Array) -> Array:
        """Kernel gradient patches^T gradient, one product over all pixels of the batch."""
        rows = gradient.reshape(-1, gradient.shape[-1]).astype(x.dtype)
        product = jnp.matmul(
            patches.reshape(-1, patches.shape[-1]).T, rows, precision=window.precision
        )
        return product.reshape(kernel.shape)

    def of_input(gradient: Array) -> Array:
        """Input gradient for stride 1: a convolution with the flipped kernel."""
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

    # A symbolic zero means that nobody differentiates this argument (an image, a frozen kernel).
    tangent = jnp.zeros_like(y)
    if not isinstance(dk, SymbolicZero):
        tangent += jax.linear_transpose(of_kernel, y)(dk)[0]
    if not isinstance(dx, SymbolicZero) and window.strides == (1, 1):
        tangent += jax.linear_transpose(of_input, y)(dx)[0]
    elif not isinstance(dx, SymbolicZero):  # strided: XLA would dilate the gradient with zeros
        tangent += _multiply(window, _patches(window, dx, kernel.shape[:2]), kernel)
    return y, tangent


_product.defjvp(_tangent, symbolic_zeros=True)


def _patches(window: Window, x: Array, shape: tuple[int, ...]) -> Array:
    """The receptive field of each output pixel, (batch, height', width', rows*columns*channels)."""
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
