"""The `cache` collection of autoregressive models: creation, one step, beams."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.state import CACHE
from jdl.typing import PyTree

Step = Callable[[jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]]
"""Maps tokens (rows, n), the position of the first and a cache to logits (rows, n, vocab) and the
updated cache."""


def apply_with_cache(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    tokens: jax.Array,
    position: jax.Array,
    cache: PyTree,
) -> tuple[jax.Array, PyTree]:
    """Applies a language model with its cache; with model and variables bound, a `Step`."""
    positions = position + jnp.arange(tokens.shape[1])[None]
    logits, changed = model.apply(
        {**variables, CACHE: cache}, tokens, positions=positions, decode=True, mutable=CACHE
    )
    return logits, changed[CACHE]


def init_cache(model: nn.Module, variables: Mapping[str, PyTree], rows: int, length: int) -> PyTree:
    """Returns the empty cache of a language model for `rows` sequences of `length` tokens."""

    def make() -> PyTree:
        tokens = jnp.zeros((rows, length), jnp.int32)
        positions = jnp.arange(length)[None]
        return model.apply(variables, tokens, positions=positions, decode=True, mutable=CACHE)

    _, changed = jax.eval_shape(make)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), changed[CACHE])


def batch_axes(make: Callable[[int], PyTree]) -> PyTree:
    """Returns each cache array's batch axis, which follows the layer axis of scanned layers.

    Args:
      make: builds the cache of a number of rows; only its shapes are used.
    """
    one, two = (jax.eval_shape(lambda rows=rows: make(rows)) for rows in (1, 2))

    def axis(one: jax.ShapeDtypeStruct, two: jax.ShapeDtypeStruct) -> int:
        return [a == b for a, b in zip(one.shape, two.shape, strict=True)].index(False)

    return jax.tree.map(axis, one, two)


def repeat(cache: PyTree, axes: PyTree, times: int) -> PyTree:
    """Repeats each row of a cache, copies adjacent."""
    return jax.tree.map(lambda leaf, axis: jnp.repeat(leaf, times, axis), cache, axes)


def reorder(cache: PyTree, axes: PyTree, rows: jax.Array) -> PyTree:
    """Selects rows of a cache by index."""
    return jax.tree.map(lambda leaf, axis: jnp.take(leaf, rows, axis), cache, axes)
