"""Gradient transformations that Optax lacks, and the masks that select their parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from jdl.paths import path_name
from jdl.tracing import is_number, is_zero
from jdl.typing import PyTree


def _parts(path: jax.tree_util.KeyPath) -> list[str]:
    """The parts of a leaf's path."""
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def decay_mask(params: PyTree) -> PyTree:
    """True for each weight that decay and penalties apply to.

    Excludes leaves named `bias` or `scale`, of any number of dimensions, and all leaves with fewer
    than two dimensions.
    """

    def decays(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
        return leaf.ndim >= 2 and _parts(path)[-1] not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def add_penalties(l1: float, l2: float, mask: Any = decay_mask) -> optax.GradientTransformation:
    """Adds the gradient of l1 * sum |w| + l2 * sum w^2, that is l1 * sign(w) + 2 * l2 * w.

    The subgradient at w = 0 is 0. Applies to the weights of `mask`, or to all where it is None.
    """

    def add_signs(gradients: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda g, w: g + l1 * jnp.sign(w), gradients, params)

    none = is_zero(l1)
    signs = optax.stateless(add_signs)
    signs = signs if mask is None else optax.masked(signs, mask)
    return optax.chain(optax.identity() if none else signs, optax.add_decayed_weights(2 * l2, mask))


class WeightAverage(NamedTuple):
    """State of `average_weights`."""

    steps: Any  # updates averaged so far, int32 scalar (an array, or in its place a shape)
    mean: PyTree  # the average, shaped like the parameters


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; must be last in the chain.

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
        # Copies, since a step that donates its state must not receive one buffer twice.
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


def skip_idle(method: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Takes no step, nor counts one, while the players are idle that its parameters belong to.

    In a game `update` needs `active=`, for each parameter whether its player takes this step.
    """
    method = optax.with_extra_args_support(method)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        # The updates of other parameters are masked.
        own = {path for path, _ in jax.tree_util.tree_leaves_with_path(updates)}
        players = jax.tree_util.tree_leaves_with_path(extra.get("active"))
        active = [active for path, active in players if path in own]
        if not active:
            return method.update(updates, state, params, **extra)
        return jax.lax.cond(
            jnp.stack(active).any(),
            lambda: method.update(updates, state, params, **extra),
            lambda: (optax.tree.zeros_like(updates), state),
        )

    return optax.GradientTransformationExtraArgs(method.init, update)


def averaged_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The averaged parameters kept by an optimizer with `ema_decay`.

    Args:
      opt_state: state of a transformation from `Optimizer.build`, or of an `optax.partition` of
        several; then parameters without an average are taken from `params`.
      params: the current parameters.

    Returns:
      Parameters to evaluate with, shaped like `params`; `params` itself if no average is kept.
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
    """The paths of all trees of averaged parameters, such as `opt_state.1.mean`.

    Subpaths are those of the parameters.
    """

    def is_average(node: object) -> bool:
        return isinstance(node, WeightAverage)

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_average)
    return [path_name((*p, jax.tree_util.GetAttrKey("mean"))) for p, x in nodes if is_average(x)]


def matrix_axes(params: PyTree, adam_names: tuple[str, ...]) -> PyTree:
    """Muon's (inputs, outputs) axes of each parameter, or None for Adam.

    See `jdl.optimizers.Muon` for the rule.
    """

    def axes(path: jax.tree_util.KeyPath, leaf: Any) -> MuonDimensionNumbers | None:
        parts = _parts(path)
        if leaf.ndim < 2 or parts[-1] != "kernel" or set(parts) & set(adam_names):
            return None
        inputs = 1 if {"query", "key", "value"} & set(parts[-2:]) else leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def normalize_weights(axes: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    """Scales matrices to the norm sqrt(outputs) before their update; last in the chain.

    The weights of an output then have a norm of 1 in the root mean square, so that a step of one
    size turns the layers alike (Jordan, 2024, in the code of airbench94_muon). Where batch norm
    follows, this does not change the function.

    Args:
      axes: returns Muon's axes of each parameter, None for those to leave alone.
    """

    def update(updates: PyTree, params: PyTree) -> PyTree:
        def one(update: jax.Array, weight: jax.Array, found: Any) -> jax.Array:
            if found is None:
                return update
            outputs = math.prod(weight.shape[axis] for axis in found.output_axis)
            norm = jnp.linalg.norm(weight.ravel())
            scale = jnp.sqrt(outputs) / jnp.where(norm > 0, norm, jnp.sqrt(outputs))
            return update + (scale - 1) * weight

        known = axes(params)
        return jax.tree.map(one, updates, params, known)

    return optax.stateless(update)
