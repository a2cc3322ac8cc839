"""Gradient transformations that Optax lacks, and the rules for which parameters they touch."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from jdl.paths import path_name
from jdl.tracing import is_number, is_zero
from jdl.typing import PyTree


def _parts(path: jax.tree_util.KeyPath) -> list[str]:
    """The names on the way from the root of a tree to a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def decay_mask(params: PyTree) -> PyTree:
    """True for each weight that decay and penalties apply to.

    Left out are leaves named `bias` or `scale` (of a normalization layer, or of any layer that
    keeps them in more than one dimension) and all leaves with fewer than two dimensions.
    """

    def decays(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
        return leaf.ndim >= 2 and _parts(path)[-1] not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def add_penalties(l1: float, l2: float) -> optax.GradientTransformation:
    """Adds the gradient of l1 * sum |w| + l2 * sum w^2, that is l1 * sign(w) + 2 * l2 * w.

    At w = 0 the subgradient 0 is taken. Weights are those of `decay_mask`.
    """

    def add_signs(gradients: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda g, w: g + l1 * jnp.sign(w), gradients, params)

    none = is_zero(l1)
    signs = optax.identity() if none else optax.masked(optax.stateless(add_signs), decay_mask)
    return optax.chain(signs, optax.add_decayed_weights(2 * l2, decay_mask))


class WeightAverage(NamedTuple):
    """State of `average_weights`."""

    steps: Any  # updates averaged so far, int32 scalar (an array, or in its place a shape)
    mean: PyTree  # the average, shaped like the parameters


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; must be last in a chain.

    With w_t the parameters after update t, the average is the weighted mean of w_1 ... w_t with
    weights proportional to decay^(t - i). It is the zero-started average divided by 1 - decay^t,
    as Adam and `optax.ema` debias (Kingma and Ba, 2015, §3), written so that only the mean itself
    is stored:  mean += (1 - decay) / (1 - decay^t) * (w_t - mean).  While t is small this is the
    plain mean of Polyak and Juditsky (1992), so early averages are not stuck at the initial
    weights; the initial weights themselves do not count.

    Args:
      decay: above 0 and below 1; about 1 / (1 - decay) updates are averaged over.
    """

    log = math.log(decay) if is_number(decay) else jnp.log(decay)

    def init(params: PyTree) -> WeightAverage:
        # Copies: a training step that donates its state must not find one buffer in it twice.
        return WeightAverage(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, WeightAverage]:
        steps = jnp.asarray(optax.safe_increment(state.steps))
        # expm1, since 1 - decay^t loses digits in float32 when decay is near 1.
        rate = (1 - decay) / -jnp.expm1(steps * log)
        mean = jax.tree.map(
            lambda mean, w: (mean + rate * (w - mean)).astype(mean.dtype),
            state.mean,
            optax.apply_updates(params, updates),
        )
        return updates, WeightAverage(steps, mean)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The average of the parameters that an optimizer with `ema_decay` set has kept.

    Args:
      opt_state: state of a transformation that `Optimizer.build` gave, or of an `optax.partition`
        of several; then parameters that are not averaged are taken from `params`.
      params: the current parameters.

    Returns:
      Parameters to evaluate with, shaped like `params`: `params` itself where no average is kept.
    """

    def is_average(node: object) -> bool:
        return isinstance(node, WeightAverage)

    def choose(mean: PyTree, current: PyTree) -> PyTree:
        return current if is_masked(mean) else mean

    def is_masked(node: object) -> bool:
        return isinstance(node, optax.MaskedNode)

    for state in jax.tree.leaves(opt_state, is_leaf=is_average):
        if is_average(state):
            params = jax.tree.map(choose, state.mean, params, is_leaf=is_masked)
    return params


def average_paths(tree: PyTree) -> list[str]:
    """The paths of the trees of averaged parameters in a tree, as in `opt_state.1.mean`.

    Below each of them a path continues as it does in the parameters.
    """

    def is_average(node: object) -> bool:
        return isinstance(node, WeightAverage)

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_average)
    return [path_name((*p, jax.tree_util.GetAttrKey("mean"))) for p, x in nodes if is_average(x)]


def matrix_axes(params: PyTree, adam_names: tuple[str, ...]) -> PyTree:
    """How Muon reads each parameter as a matrix (inputs, outputs), or None where Adam is used.

    See `jdl.optimizers.Muon` for the rule.
    """

    def axes(path: jax.tree_util.KeyPath, leaf: Any) -> MuonDimensionNumbers | None:
        parts = _parts(path)
        if leaf.ndim < 2 or parts[-1] != "kernel" or set(parts) & set(adam_names):
            return None
        inputs = 1 if {"query", "key", "value"} & set(parts[-2:]) else leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
