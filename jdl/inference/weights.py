"""Smaller weights of a trained network: int8 with scales, and pruned by magnitude."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.optimizers import decay_mask
from jdl.optimizers.pruning import largest
from jdl.typing import PyTree

LEVELS = 127
"""Largest absolute value of a quantized weight."""


class Quantized(NamedTuple):
    """An array as int8 values times a float32 scale of each output channel."""

    values: Any  # int8, of the array's shape (an array, or in its place a shape)
    scale: Any  # float32, (1, ..., channels)


def quantize(params: PyTree) -> PyTree:
    """Returns parameters with their weights as `Quantized`, symmetric and rounded to nearest.

    Weights are the floating-point arrays that decay applies to (`decay_mask`). Each slice of the
    last axis, such as the weights of an output channel, has its own scale: its largest absolute
    value becomes 127 (Jacob et al., 2018, without zero points). Others stay as they are.
    """

    def one(is_weight: bool, array: Any) -> Any:
        if not is_weight or not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        wide = jnp.asarray(array, jnp.float32)
        largest = jnp.abs(wide).max(tuple(range(wide.ndim - 1)), keepdims=True)
        scale = jnp.where(largest > 0, largest / LEVELS, 1.0)
        return Quantized(jnp.round(wide / scale).astype(jnp.int8), scale)

    return jax.tree.map(one, decay_mask(params), params)


def dequantize(params: PyTree) -> PyTree:
    """Inverts `quantize` up to its rounding; weights become float32."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf.values.astype(jnp.float32) * leaf.scale
        return leaf

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Quantized))


def prune(params: PyTree, sparsity: float) -> PyTree:
    """Returns parameters with the smallest weights of all kernels set to zero (Han et al., 2015).

    Args:
      params: as in `quantize`, which tells weights from others.
      sparsity: share of zeros among the weights of the kernels, at least 0 and below 1.

    Raises:
      UserError: the share is another.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"the sparsity is the share of weights to prune, in [0, 1), not {sparsity}")
    mask = decay_mask(params)
    kernels = jax.tree.map(lambda is_weight, w: w if is_weight else None, mask, params)
    return jax.tree.map(
        lambda keep, w: w if keep is None else jnp.where(keep, w, 0),
        largest(kernels, sparsity),
        params,
        is_leaf=lambda x: x is None,
    )
