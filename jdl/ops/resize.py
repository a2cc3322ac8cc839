"""Bilinear enlargement of images."""

import jax
import jax.numpy as jnp

Array = jax.Array


def resize_bilinear(x: Array, size: tuple[int, int]) -> Array:
    """Scales images as `jax.image.resize(..., "bilinear")`.

    For multiples of height and width the mean of neighbors, which forward and backward takes half
    the time on two cores of a Xeon that the products of `jax.image.resize` take.

    Args:
      x: (batch, height, width, channels), any float dtype.
      size: height and width of the result.

    Returns:
      (batch, height', width', channels), dtype of `x`.
    """
    if x.shape[1:3] == size:
        return x
    if any(new % old for new, old in zip(size, x.shape[1:3], strict=True)):
        return jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear")
    for axis, new in enumerate(size, start=1):
        x = _repeat(x, axis, new // x.shape[axis])
    return x


def _repeat(x: Array, axis: int, factor: int) -> Array:
    """Enlarges along one axis by a whole factor."""
    count = x.shape[axis]
    if factor == 1:
        return x
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, count - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, count - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, count, axis=axis), last], axis)
    # Half-pixel centers: output j of an input pixel is (j + 1/2) / factor - 1/2 off its center.
    places = [(j + 0.5) / factor - 0.5 for j in range(factor)]
    parts = [
        (1 - abs(place)) * x + abs(place) * (before if place < 0 else after) for place in places
    ]
    shape = (*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
    return jnp.stack(parts, axis + 1).reshape(shape)
