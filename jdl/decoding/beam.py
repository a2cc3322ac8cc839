"""Beam search: a sequence of high probability, of which several beginnings are kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.decoding.cache import Step, reorder, repeat
from jdl.errors import UserError
from jdl.typing import PyTree


def beam_search(
    step: Step,
    cache: PyTree,
    axes: PyTree,
    first: jax.Array,
    position: int | jax.Array,
    length: int,
    *,
    end: int | None = None,
    beams: int = 4,
    alpha: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The best continuation found of each row, in the sense of log-probability / length penalty.

    Texts that end, and those that reach the length without it, compete. A row's search is over when
    no beginning can still surpass the best text. One beam with alpha 0 is greedy.

    It is to be called in a compiled function.

    Args:
      step: reads on in each of the beams: tokens (rows * beams, 1), those of a row side by side.
      cache: of what was read before `first`, each row once.
      axes: of the cache, along which its rows lie (`jdl.decoding.cache.batch_axes`).
      first: the token that each row is continued after, (rows,) int32.
      position: of `first`.
      length: most tokens that are added.
      end: the token that ends a text; None: all have this length.
      beams: how many beginnings of each row are kept after each token.
      alpha: power of the length penalty; more of it favours longer texts.

    Returns:
      tokens: (rows, length) int32, filled up with `end`.
      scores: (rows,) float32, log-probability over length penalty.

    Raises:
      UserError: there is no beam, alpha is negative, or the length is less than 1.
    """
    for name, value, least in (("beams", beams, 1), ("alpha", alpha, 0), ("length", length, 1)):
        if not value >= least:
            raise UserError(f"beam search needs {name} of at least {least}, not {value}")
    rows = first.shape[0]
    live = jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0.0)
    filled = jnp.full((rows, beams, length), 0 if end is None else end, jnp.int32)
    begun = _Beams(
        jnp.int32(0), filled, live, jnp.repeat(first.astype(jnp.int32)[:, None], beams, 1),
        filled[:, 0], jnp.full(rows, -jnp.inf), repeat(cache, axes, beams),
    )  # fmt: skip

    def going(state: _Beams) -> Any:
        attainable = state.live.max(1) / length_penalty(length, alpha)
        return (state.count < length) & (state.score < attainable).any()

    def one(state: _Beams) -> _Beams:
        logits, cache = step(state.last.reshape(-1, 1), position + state.count, state.cache)
        return _extend(state, logits[:, 0], cache, axes, end, alpha)

    found = jax.lax.while_loop(going, one, begun)
    return found.best, found.score


def length_penalty(count: Any, alpha: float) -> Any:
    """((5 + n) / 6) ** alpha of a text of n tokens, its end included (Wu et al., 2016, eq. 14)."""
    return ((5 + count) / 6) ** alpha


class _Beams(NamedTuple):
    count: Any  # tokens added so far
    tokens: Any  # (rows, beams, length) int32, of beginnings
    live: Any  # (rows, beams), their log-probabilities
    last: Any  # (rows, beams) int32, the last token of each
    best: Any  # (rows, length) int32, the best text so far
    score: Any  # (rows,), its log-probability over length penalty
    cache: PyTree  # of rows * beams


def _extend(
    state: _Beams, logits: jax.Array, cache: PyTree, axes: PyTree, end: int | None, alpha: float
) -> _Beams:
    """Adds a token to the beams, given logits (rows * beams, vocabulary)."""
    rows, beams, length = state.tokens.shape
    size, count = logits.shape[-1], state.count + 1
    chances = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, beams, size)
    every = (state.live[..., None] + chances).reshape(rows, beams * size)
    # At most one of each beam's continuations ends: twice as many leave enough that do not.
    scores, index = jax.lax.top_k(every, min(2 * beams, beams * size))
    origin, token = index // size, (index % size).astype(jnp.int32)
    tokens = _pick(state.tokens, origin).at[:, :, state.count].set(token)
    ended = jnp.zeros_like(token, bool) if end is None else token == end

    done = jnp.where(ended | (count == length), scores / length_penalty(count, alpha), -jnp.inf)
    place = done.argmax(1)[:, None]
    score = _pick(done, place)[:, 0]
    better = score > state.score
    best = jnp.where(better[:, None], _pick(tokens, place)[:, 0], state.best)

    live, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, scores), beams)
    sources = jnp.arange(rows)[:, None] * beams + _pick(origin, kept)
    return _Beams(
        count, _pick(tokens, kept), live, _pick(token, kept),
        best, jnp.where(better, score, state.score), reorder(cache, axes, sources.reshape(-1)),
    )  # fmt: skip


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x (rows, n, ...) at index (rows, m) of each row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
