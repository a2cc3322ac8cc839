"""Max pooling with a gradient that is fast on CPUs too."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jdl.errors import UserError

Array = jax.Array


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Maximum over windows of images, or of arrays with any number of spatial axes.

    Equal to `flax.linen.max_pool`. It is a maximum over strided slices, since XLA's gradient of
    `reduce_window` is about twenty times slower on CPUs. Equal elements of a window share the
    gradient. Forward and reverse mode are supported.

    Args:
      x: (..., height, width, channels), for a window of height and width; the axes before these,
        none or more, are batches.
      window_shape: size of a window along each spatial axis.
      strides: along the spatial axes; 1 by default.
      padding: `SAME`, `VALID`, or elements before and after along each spatial axis.

    Returns:
      (..., height', width', channels), dtype of `x`.

    Raises:
      UserError: `x` has too few axes.
    """
    batches = x.ndim - len(window_shape) - 1
    if batches < 0:
        raise UserError(
            f"max_pool needs an axis of x for each of the window {tuple(window_shape)} and one for "
            f"channels, and x has shape {x.shape}"
        )
    strides = tuple(strides or (1,) * len(window_shape))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[batches:-1], window_shape, strides, padding)
    if any(before or after for before, after in padding):
        none = (0, 0, 0)
        pads = (*(none,) * batches, *((*each, 0) for each in padding), none)
        x = lax.pad(x, _least(x.dtype), pads)
    # XLA fuses the padding of a float32 gradient with what computes it.
    apart = strides == tuple(window_shape) and x.dtype in (jnp.bfloat16, jnp.float16)
    pool = _pool_apart if apart else _pool
    return pool(batches, tuple(window_shape), strides, x if apart else _gradient_apart(x))


@jax.custom_jvp
def _gradient_apart(x: Any) -> Any:
    """Returns `x`, an array or several, whose gradient GPUs compute by a kernel of its own.

    The sum of a pixel's windows is cheap alone, and slow inside a reduction, such as batch norm's,
    that XLA fuses it with; and each of its terms is a chain of comparisons, which XLA would fuse
    into the sum and compute again for every pixel of a window.
    """
    return x


@_gradient_apart.defjvp
def _gradient_apart_tangent(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    return x, lax.platform_dependent(dx, cuda=lax.optimization_barrier, default=lambda dx: dx)


def _pool(batches: int, window: tuple[int, ...], strides: tuple[int, ...], x: Array) -> Array:
    """Pools windows that may overlap, after `batches` axes."""
    elements = _elements(batches, window, strides, x)
    overlap = any(step < extent for step, extent in zip(strides, window, strict=True))
    first, *others = _gradient_apart(elements) if overlap else elements
    for element in others:
        first = jnp.maximum(first, element)
    return first


def _elements(
    batches: int, window: tuple[int, ...], strides: tuple[int, ...], x: Array
) -> list[Array]:
    """Element (i, j) of every window at once: (..., height', width', channels) each."""
    counts = [
        max((size - extent) // step + 1, 0)
        for size, extent, step in zip(x.shape[batches:-1], window, strides, strict=True)
    ]

    def shifted(*begin: int) -> Array:
        slices = (
            slice(b, b + max((count - 1) * step + 1, 0), step)
            for b, count, step in zip(begin, counts, strides, strict=True)
        )
        return x[(*(slice(None),) * batches, *slices)]

    return list(itertools.starmap(shifted, itertools.product(*map(range, window))))


_pool_apart = jax.custom_jvp(_pool, nondiff_argnums=(0, 1, 2))


@_pool_apart.defjvp
def _pool_apart_tangent(
    batches: int, window: tuple[int, ...], strides: tuple[int, ...], primals: Any, tangents: Any
) -> tuple[Array, Array]:
    """Pools windows that do not overlap: each element belongs to one.

    The transpose multiplies the gradient, repeated for the elements of its window, by their shares.
    That of strided slices would pad between elements, which CPUs do not vectorize.
    """
    (x,), (dx,) = primals, tangents
    y = _pool(batches, window, strides, x)
    ties = sum((each == y).astype(x.dtype) for each in _elements(batches, window, strides, x))
    inside = tuple(batches + 2 * index + 1 for index in range(len(window)))
    x, dx = _windows(batches, window, x), _windows(batches, window, dx)
    largest = x == jnp.expand_dims(y, inside)
    share = jnp.where(largest, jnp.expand_dims(1 / lax.stop_gradient(ties), inside), 0)
    return y, (dx * share.astype(x.dtype)).sum(inside)


def _windows(batches: int, window: tuple[int, ...], x: Array) -> Array:
    """Splits each spatial axis into windows and their elements; a rest is left out."""
    counts = [size // extent for size, extent in zip(x.shape[batches:-1], window, strict=True)]
    kept = (slice(n * extent) for n, extent in zip(counts, window, strict=True))
    x = x[(*(slice(None),) * batches, *kept)]
    split = itertools.chain(*zip(counts, window, strict=True))
    return x.reshape(*x.shape[:batches], *split, x.shape[-1])


def _least(dtype: Any) -> Array:
    """The smallest value of a dtype, the identity of max."""
    real = jnp.issubdtype(dtype, jnp.floating)
    return jnp.array(-jnp.inf if real else jnp.iinfo(dtype).min, dtype)
