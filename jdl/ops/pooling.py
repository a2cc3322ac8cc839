"""Max pooling with a gradient that is fast on CPUs too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Maximum over windows of an image batch.

    Equal to `flax.linen.max_pool`. It is a maximum over strided slices, since XLA's gradient of
    `reduce_window` is about twenty times slower on CPUs. Equal elements of a window share the
    gradient. Forward and reverse mode are supported.

    Args:
      x: (batch, height, width, channels).
      window_shape: height and width of a window in pixels.
      strides: along height and width, in pixels; 1 and 1 by default.
      padding: `SAME`, `VALID`, or pixels before and after along height and width.

    Returns:
      (batch, height', width', channels), dtype of `x`.
    """
    strides = tuple(strides or (1, 1))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window_shape, strides, padding)
    if any(before or after for before, after in padding):
        x = lax.pad(x, _least(x.dtype), ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)))
    counts = [
        max((size - window) // step + 1, 0)
        for size, window, step in zip(x.shape[1:3], window_shape, strides, strict=True)
    ]

    def shifted(*begin: int) -> Array:
        rows, columns = (
            slice(b, b + max((count - 1) * step + 1, 0), step)
            for b, count, step in zip(begin, counts, strides, strict=True)
        )
        return x[:, rows, columns]

    # Element (i, j) of every window at once: (batch, height', width', channels) each.
    pooled = shifted(0, 0)
    for i in range(window_shape[0]):
        for j in range(window_shape[1]):
            if i or j:
                pooled = jnp.maximum(pooled, shifted(i, j))
    return pooled


def _least(dtype: Any) -> Array:
    """The smallest value of a dtype, the identity of max."""
    real = jnp.issubdtype(dtype, jnp.floating)
    return jnp.array(-jnp.inf if real else jnp.iinfo(dtype).min, dtype)
