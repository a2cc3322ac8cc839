"""Convolution of images as one matrix product where that is faster."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    the shifted images are laid side by side along the channels (im2col; Chellapilla et al., 2006)
    and differentiation gives two more products. Groups, dilated inputs and what is not an image
    batch (NHWC) go to XLA, as everything does on other platforms. For
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
    return jnp.matmul(
        _patches(lhs, rhs.shape[:2], tuple(window_strides), pads, dilation),
        rhs.reshape(-1, rhs.shape[-1]),
        precision=options.get("precision"),
        preferred_element_type=options.get("preferred_element_type"),
    )


def _patches(
    x: Array,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> Array:
    """(batch, height', width', rows * columns * channels): what each output pixel sees."""
    if any(before or after for before, after in padding):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
    size = [
        max((n - (w - 1) * d - 1) // s + 1, 0)
        for n, w, d, s in zip(x.shape[1:3], window, dilation, strides, strict=True)
    ]

    def shifted(*begin: int) -> Array:
        rows, columns = (
            slice(b * d, b * d + max((n - 1) * s + 1, 0), s)
            for b, d, n, s in zip(begin, dilation, size, strides, strict=True)
        )
        return x[:, rows, columns]

    each = [shifted(i, j) for i in range(window[0]) for j in range(window[1])]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=-1)
