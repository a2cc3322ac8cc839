"""Weight averages from which training continues."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdl.optimizers.schedules import check
from jdl.typing import PyTree


class LookaheadState(NamedTuple):
    """State of `Lookahead`."""

    steps: Any  # updates so far, int32 scalar
    slow: PyTree  # the slow weights, shaped like the parameters


@dataclass(frozen=True, kw_only=True)
class Lookahead:
    """Slow weights that follow the trained ones, and replace them (Zhang et al., 2019).

    Every `period` steps, `slow = decay * slow + (1 - decay) * weights`, from which training
    continues. airbench94 (Jordan, 2024) lets the decay grow over the run:
    `Lookahead(decay=0.95**5, power=3, start=0.3)`.
    """

    period: int = 5  # steps between two such updates, at least 1
    decay: float = 0.5  # of the slow weights; the paper's alpha is 1 - decay
    power: float = 0.0  # the decay is multiplied by (step / steps)^power
    start: float = 0.0  # fraction of the run before which the slow weights are the trained ones

    def __post_init__(self) -> None:
        check(self, "period", self.period >= 1, "at least 1")
        check(self, "decay", 0 <= self.decay < 1, "at least 0 and below 1")
        check(self, "power", self.power >= 0, "at least 0")
        check(self, "start", 0 <= self.start < 1, "a fraction of the run, at least 0 and below 1")

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the transformation of final updates, for a run of `steps`."""
        begin = round(self.start * steps)

        def init(params: PyTree) -> LookaheadState:
            # Copies, since a step that donates its state must not receive one buffer twice.
            return LookaheadState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

        def update(
            updates: PyTree, state: PyTree, params: PyTree = None
        ) -> tuple[PyTree, LookaheadState]:
            step = jnp.asarray(optax.safe_increment(state.steps))
            decay = self.decay * (step / steps) ** self.power
            due = (step > begin) & (step % self.period == 0)

            def follow(slow: jax.Array, new: jax.Array) -> jax.Array:
                mean = (decay * slow + (1 - decay) * new).astype(slow.dtype)
                return jnp.where(due, mean, jnp.where(step > begin, slow, new))

            slow = jax.tree.map(follow, state.slow, optax.apply_updates(params, updates))
            back = jax.tree.map(
                lambda u, s, p: jnp.where(due, (s - p).astype(u.dtype), u), updates, slow, params
            )
            return back, LookaheadState(step, slow)

        return optax.GradientTransformation(init, update)
