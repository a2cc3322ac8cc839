"""Magnitude pruning: sets the smallest weights to zero while the others train on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdl.optimizers.schedules import check
from jdl.optimizers.transforms import decay_mask
from jdl.typing import PyTree


class PruningState(NamedTuple):
    """State of `Pruning`."""

    steps: Any  # updates so far, int32 scalar
    kept: PyTree  # bool, shaped like the parameters: which weights are not pruned


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Sets the smallest weights of all kernels to zero, gradually more (Zhu and Gupta, 2017).

    The share of zeros grows from 0 at `start` to `sparsity` at `end`, fast at first: at a fraction
    x of the way it is `sparsity * (1 - (1 - x)^3)`. The weights that are zero are chosen anew every
    `every` steps, by their magnitude among all kernels, and stay zero in between: as many of each
    would hurt more (Blalock et al., 2020), since a small first kernel has none to spare.
    Kernels and other weights are those that decay applies to (`decay_mask`).
    """

    sparsity: float = 0.9  # share of the kernels' weights that is zero in the end
    start: float = 0.2  # fraction of the run at which pruning begins
    end: float = 0.7  # fraction of the run at which `sparsity` is reached
    every: int = 100  # steps between two choices of the weights, at least 1

    def __post_init__(self) -> None:
        check(self, "sparsity", 0 <= self.sparsity < 1, "a share, at least 0 and below 1")
        check(self, "start", 0 <= self.start < 1, "a fraction of the run, at least 0 and below 1")
        check(self, "end", self.start < self.end <= 1, "above start, and at most 1")
        check(self, "every", self.every >= 1, "at least 1")

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the transformation of final updates, for a run of `steps`."""
        begin = round(self.start * steps)
        last = max(begin + 1, round(self.end * steps))

        def init(params: PyTree) -> PruningState:
            kept = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
            return PruningState(jnp.zeros([], jnp.int32), kept)

        def update(
            updates: PyTree, state: PyTree, params: PyTree = None
        ) -> tuple[PyTree, PruningState]:
            step = jnp.asarray(optax.safe_increment(state.steps))
            way = jnp.clip((step - begin) / (last - begin), 0, 1)
            sparsity = self.sparsity * (1 - (1 - way) ** 3)
            due = (step > begin) & (((step - begin) % self.every == 0) | (step == last))
            new = optax.apply_updates(params, updates)
            kept = jax.lax.cond(
                due & (step <= last),
                lambda: largest(new, sparsity),
                lambda: state.kept,
            )
            zeroed = jax.tree.map(lambda k, u, w: jnp.where(k, u, -w), kept, updates, params)
            return zeroed, PruningState(step, kept)

        return optax.masked(optax.GradientTransformation(init, update), decay_mask)


def largest(weights: PyTree, sparsity: float | jax.Array) -> PyTree:
    """Returns which weights stay, bool, if the share `sparsity` of smallest magnitude goes.

    Magnitudes are compared between all leaves. Weights equal to the last one that goes, go too.
    """
    leaves = [jnp.abs(w).ravel() for w in jax.tree.leaves(weights)]
    sizes = jnp.sort(jnp.concatenate(leaves))
    count = jnp.floor(sparsity * sizes.size + 0.5).astype(jnp.int32)
    threshold = jnp.where(count > 0, sizes[jnp.maximum(count - 1, 0)], -1)
    return jax.tree.map(lambda w: jnp.abs(w) > threshold, weights)
