"""Beam search: the most probable sequence among several partial ones kept at each step."""

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
    max_new_tokens: int,
    *,
    eos_token_id: int | None = None,
    num_beams: int = 4,
    alpha: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Finds the continuation of highest log-probability over length penalty.

    Hypotheses that end compete with those cut at `max_new_tokens`. A row stops as soon as none of
    its live beams can beat its best finished hypothesis. One beam with `alpha` 0 is greedy search.
    Call it inside a compiled function.

    Args:
      step: decodes one token per beam, tokens (rows * num_beams, 1), beams of a row adjacent.
      cache: of the tokens before `first`, one entry per row.
      axes: the axis of each cache array that holds the rows (`jdl.decoding.cache.batch_axes`).
      first: the last known token of each row, (rows,) int32.
      position: of `first`, a scalar.
      max_new_tokens: maximum number of tokens added.
      eos_token_id: token that ends a sequence; None: all sequences have `max_new_tokens` tokens.
      num_beams: number of partial sequences kept per row.
      alpha: exponent of the length penalty; larger values favor longer sequences.

    Returns:
      tokens: (rows, max_new_tokens) int32, padded with `eos_token_id`.
      scores: (rows,) float32, log-probability over length penalty.

    Raises:
      UserError: `num_beams`, `alpha` or `max_new_tokens` is out of range.
    """
    limits = (("num_beams", num_beams, 1), ("alpha", alpha, 0))
    for name, value, least in (*limits, ("max_new_tokens", max_new_tokens, 1)):
        if not value >= least:
            raise UserError(f"beam search needs {name} of at least {least}, not {value}")
    rows = first.shape[0]
    # All beams start equal: only the first counts, or the top k would be copies of one sequence.
    live = jnp.full((rows, num_beams), -jnp.inf).at[:, 0].set(0.0)
    padding = 0 if eos_token_id is None else eos_token_id
    tokens = jnp.full((rows, num_beams, max_new_tokens), padding, jnp.int32)
    last = jnp.repeat(first.astype(jnp.int32)[:, None], num_beams, 1)
    beams, score = repeat(cache, axes, num_beams), jnp.full(rows, -jnp.inf)
    start = _Beams(jnp.int32(0), tokens, live, last, tokens[:, 0], score, beams)

    def unfinished(state: _Beams) -> Any:
        # Log-probabilities only fall, and the longest sequence has the largest penalty.
        attainable = state.live.max(1) / length_penalty(max_new_tokens, alpha)
        return (state.count < max_new_tokens) & (state.score < attainable).any()

    def advance(state: _Beams) -> _Beams:
        logits, cache = step(state.last.reshape(-1, 1), position + state.count, state.cache)
        return _extend(state, logits[:, 0], cache, axes, eos_token_id, alpha)

    found = jax.lax.while_loop(unfinished, advance, start)
    return found.best, found.score


def length_penalty(count: Any, alpha: float) -> Any:
    """((5 + n) / 6) ** alpha for n tokens, the end token included (Wu et al., 2016, eq. 14)."""
    return ((5 + count) / 6) ** alpha


class _Beams(NamedTuple):
    count: Any  # () int32, tokens added so far
    tokens: Any  # (rows, beams, max_new_tokens) int32, partial sequences
    live: Any  # (rows, beams) float32, their log-probabilities
    last: Any  # (rows, beams) int32, their last tokens
    best: Any  # (rows, max_new_tokens) int32, the best finished sequence
    score: Any  # (rows,) float32, its log-probability over length penalty
    cache: PyTree  # of rows * beams sequences


def _extend(
    state: _Beams,
    logits: jax.Array,
    cache: PyTree,
    axes: PyTree,
    eos_token_id: int | None,
    alpha: float,
) -> _Beams:
    """Adds a token to the beams, given logits (rows * beams, vocab)."""
    rows, beams, max_new_tokens = state.tokens.shape
    vocab_size, count = logits.shape[-1], state.count + 1
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, beams, vocab_size)
    candidates = (state.live[..., None] + log_probs).reshape(rows, beams * vocab_size)
    # At most one candidate per beam ends, so twice as many leave enough that do not.
    scores, index = jax.lax.top_k(candidates, min(2 * beams, beams * vocab_size))
    origin, token = index // vocab_size, (index % vocab_size).astype(jnp.int32)
    tokens = _pick(state.tokens, origin).at[:, :, state.count].set(token)
    ended = jnp.zeros_like(token, bool) if eos_token_id is None else token == eos_token_id

    finished = ended | (count == max_new_tokens)
    done = jnp.where(finished, scores / length_penalty(count, alpha), -jnp.inf)
    winner = done.argmax(1)[:, None]
    score = _pick(done, winner)[:, 0]
    better = score > state.score
    best = jnp.where(better[:, None], _pick(tokens, winner)[:, 0], state.best)

    live, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, scores), beams)
    sources = jnp.arange(rows)[:, None] * beams + _pick(origin, kept)
    return _Beams(
        count, _pick(tokens, kept), live, _pick(token, kept),
        best, jnp.where(better, score, state.score), reorder(cache, axes, sources.reshape(-1)),
    )  # fmt: skip


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """Gathers x (rows, n, ...) at index (rows, m), row by row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
