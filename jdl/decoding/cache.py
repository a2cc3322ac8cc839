"""The collection `cache` of a model that goes on token by token (`decode`)."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.state import CACHE
from jdl.typing import PyTree

Step = Callable[[jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]]
"""Tokens (rows, n), the position of the first of them and a cache, to logits (rows, n, vocabulary)
and the cache after them."""


def read(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    tokens: jax.Array,
    position: jax.Array,
    cache: PyTree,
) -> tuple[jax.Array, PyTree]:
    """Lets a language model, such as `jdl.models.GPT`, read on: a `Step` once it is given."""
    positions = position + jnp.arange(tokens.shape[1])[None]
    logits, changed = model.apply(
        {**variables, CACHE: cache}, tokens, positions=positions, decode=True, mutable=CACHE
    )
    return logits, changed[CACHE]


def empty(model: nn.Module, variables: Mapping[str, PyTree], rows: int, length: int) -> PyTree:
    """The cache of a language model that has read nothing, for so many rows and tokens."""

    def make() -> PyTree:
        tokens = jnp.zeros((rows, length), jnp.int32)
        positions = jnp.arange(length)[None]
        return model.apply(variables, tokens, positions=positions, decode=True, mutable=CACHE)

    _, changed = jax.eval_shape(make)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), changed[CACHE])


def batch_axes(make: Callable[[int], PyTree]) -> PyTree:
    """The axis of each of a cache's arrays along which its rows lie; layers may lie before it.

    Args:
      make: a cache for a number of rows; of its result, shapes alone matter.
    """
    one, two = (jax.eval_shape(lambda rows=rows: make(rows)) for rows in (1, 2))

    def axis(one: jax.ShapeDtypeStruct, two: jax.ShapeDtypeStruct) -> int:
        return [a == b for a, b in zip(one.shape, two.shape, strict=True)].index(False)

    return jax.tree.map(axis, one, two)


def repeat(cache: PyTree, axes: PyTree, times: int) -> PyTree:
    """Each row several times, one after the other."""
    return jax.tree.map(lambda leaf, axis: jnp.repeat(leaf, times, axis), cache, axes)


def reorder(cache: PyTree, axes: PyTree, rows: jax.Array) -> PyTree:
    """The rows of a cache that are named by number, in that order."""
    return jax.tree.map(lambda leaf, axis: jnp.take(leaf, rows, axis), cache, axes)
