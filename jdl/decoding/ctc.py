"""Decoding of connectionist temporal classification: greedy, by prefix beam search, by alignment.

Label 0 is the blank (Graves et al., 2006).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

NEVER = -1e30
"""Logarithm of a probability of 0, finite so that differences of two of these are 0."""


class Decoded(NamedTuple):
    """Labels of one row, or of several.

    Attributes:
      tokens: (..., frames) int32, padded with 0.
      frames: (..., frames) int32, at which each token is most probable, or first emitted.
    """

    tokens: Any
    frames: Any


def ctc_greedy(log_probs: Array, mask: Array) -> Decoded:
    """Takes the most probable label of each frame, without repetitions and blanks.

    Args:
      log_probs: (batch, frames, vocab) float32.
      mask: (batch, frames) bool, False for padding at the end.
    """
    best = jnp.where(mask, log_probs.argmax(-1), 0).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
    first = (best != 0) & (best != before)
    return _collected(best, first)


def _collected(labels: Array, chosen: Array) -> Decoded:
    """Returns the chosen labels (batch, frames) and their frames, moved to the front."""
    count = labels.shape[1]
    places = jnp.where(chosen, jnp.cumsum(chosen, 1) - 1, count)
    rows = jnp.arange(len(labels))[:, None]
    empty = jnp.zeros((len(labels), count + 1), jnp.int32)
    tokens = empty.at[rows, places].set(labels)[:, :count]
    frames = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), labels.shape)
    return Decoded(tokens, empty.at[rows, places].set(frames)[:, :count])


def ngram_log_probs(ngrams: list[list[int]], vocab_size: int) -> np.ndarray:
    """Returns log-probabilities of each token after each context (Witten and Bell, 1991).

    The relative frequencies of n-grams are interpolated with those of shorter ones, and in the end
    with a uniform distribution, so that none is 0.

    Args:
      ngrams: rows of n tokens and a count; token 0 stands before and behind a sequence.
      vocab_size: V, with token 0.

    Returns:
      (V,) * n float32.
    """
    order = len(ngrams[0]) - 1
    counts = np.zeros((vocab_size,) * order)
    for *gram, count in ngrams:
        counts[tuple(gram)] += count
    probs = np.full(vocab_size, 1 / vocab_size)
    for size in range(1, order + 1):
        each = counts.sum(tuple(range(order - size)))
        kinds = (each > 0).sum(-1, keepdims=True)
        total = each.sum(-1, keepdims=True) + kinds
        probs = np.where(total > 0, (each + kinds * probs) / np.maximum(total, 1), probs)
    return np.log(probs).astype(np.float32)


class _Beams(NamedTuple):
    """Prefixes of one row: a beam for each, (beams, ...)."""

    tokens: Array  # (beams, longest) int32
    frames: Array  # (beams, longest) int32, of the best emission of each
    length: Array  # (beams,) int32
    hash: Array  # (beams,) uint32, of the tokens
    blank: Array  # (beams,) log-probability of the paths that end with a blank
    label: Array  # (beams,) of those that end with the last token
    prior: Array  # (beams,) log-probability of the tokens by the prior, weighted, with bonuses


def ctc_beam_search(
    log_probs: Array,
    mask: Array,
    *,
    beam_width: int = 8,
    prior: Array | np.ndarray | None = None,
    prior_weight: float = 0.5,
    token_bonus: float = 0.0,
) -> Decoded:
    """Finds the most probable sequence of labels by prefix beam search (Hannun et al., 2014).

    Args:
      log_probs: (batch, frames, vocab) float32.
      mask: (batch, frames) bool, False for padding at the end.
      beam_width: prefixes kept after each frame.
      prior: of `ngram_log_probs`; None: all sequences are as probable.
      prior_weight: exponent of the prior.
      token_bonus: added to the log-probability for each token, against short sequences.
    """

    def one(log_probs: Array, mask: Array) -> Decoded:
        beams = _start(beam_width, len(log_probs))

        def step(beams: _Beams, frame: tuple[Array, Array, Array]) -> tuple[_Beams, None]:
            scores, valid, index = frame
            new = _extended(beams, scores, index, prior, prior_weight, token_bonus)
            return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, beams), None

        frames = (log_probs, mask, jnp.arange(len(log_probs), dtype=jnp.int32))
        beams, _ = jax.lax.scan(step, beams, frames)
        total = jnp.logaddexp(beams.blank, beams.label) + beams.prior
        if prior is not None:
            total += prior_weight * _next_scores(beams, prior)[:, 0]
        best = total.argmax()
        kept = jnp.arange(len(log_probs)) < beams.length[best]
        return Decoded(
            jnp.where(kept, beams.tokens[best], 0), jnp.where(kept, beams.frames[best], 0)
        )

    return jax.vmap(one)(log_probs, mask)


def _start(width: int, longest: int) -> _Beams:
    empty = jnp.zeros((width, longest), jnp.int32)
    never = jnp.full(width, NEVER)
    return _Beams(
        tokens=empty,
        frames=empty,
        length=jnp.zeros(width, jnp.int32),
        # Beams that do not exist yet have hashes of their own, so that nothing merges with them.
        hash=jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9),
        blank=never.at[0].set(0.0),
        label=never,
        prior=jnp.zeros(width),
    )


def _next_scores(beams: _Beams, prior: Array | np.ndarray) -> Array:
    """Returns the prior's log-probability of each token after each prefix, (beams, vocab)."""
    table = jnp.asarray(prior)
    order = table.ndim
    context = []
    for back in range(order - 1, 0, -1):
        place = beams.length - back
        rows = jnp.arange(len(place))
        context.append(jnp.where(place >= 0, beams.tokens[rows, jnp.maximum(place, 0)], 0))
    if not context:
        return jnp.broadcast_to(table, (len(beams.length), len(table)))
    return table[tuple(context)]


def _extended(
    beams: _Beams,
    scores: Array,
    index: Array,
    prior: Array | np.ndarray | None,
    prior_weight: float,
    token_bonus: float,
) -> _Beams:
    """Returns the best prefixes after one more frame with label scores (vocab,)."""
    width, vocab = len(beams.length), len(scores)
    rows, labels = jnp.arange(width), jnp.arange(vocab)
    last = jnp.where(beams.length > 0, beams.tokens[rows, jnp.maximum(beams.length - 1, 0)], 0)
    either = jnp.logaddexp(beams.blank, beams.label)
    # A prefix stays through a blank, or through its last token once more.
    blank = either + scores[0]
    label = jnp.where(last > 0, beams.label + scores[last], NEVER)
    # It grows by a token; by its last one only after a blank.
    source = jnp.where(labels == last[:, None], beams.blank[:, None], either[:, None])
    grown = jnp.where(labels > 0, source + scores, NEVER)  # (beams, vocab)
    hashes = beams.hash[:, None] * jnp.uint32(1_000_003) + labels.astype(jnp.uint32) + 1
    # What grows into another prefix of the beam is added to that one.
    same = hashes[:, :, None] == beams.hash  # (beams, vocab, beams)
    same &= beams.length[:, None, None] + 1 == beams.length
    same &= (labels[:, None] == last)[None]
    joined = jax.nn.logsumexp(jnp.where(same, grown[:, :, None], NEVER), axis=(0, 1))
    is_new_best = joined > label
    label = jnp.logaddexp(label, joined)
    grown = jnp.where(same.any(-1), NEVER, grown)

    gain = jnp.full((width, vocab), token_bonus)
    if prior is not None:
        gain += prior_weight * _next_scores(beams, prior)
    ranked = jnp.concatenate(
        [jnp.logaddexp(blank, label) + beams.prior, (grown + beams.prior[:, None] + gain).ravel()]
    )
    _, chosen = jax.lax.top_k(ranked, width)
    grows = chosen >= width
    parent = jnp.where(grows, (chosen - width) // vocab, chosen)
    token = jnp.where(grows, (chosen - width) % vocab, 0).astype(jnp.int32)
    length = beams.length[parent]
    place = jnp.arange(beams.tokens.shape[1]) == length[:, None]
    frames = jnp.where(
        (jnp.arange(beams.tokens.shape[1]) == beams.length[:, None] - 1) & is_new_best[:, None],
        index,
        beams.frames,
    )
    return _Beams(
        tokens=jnp.where(grows[:, None] & place, token[:, None], beams.tokens[parent]),
        frames=jnp.where(grows[:, None] & place, index, frames[parent]),
        length=length + grows,
        hash=jnp.where(grows, hashes[parent, token], beams.hash[parent]),
        blank=jnp.where(grows, NEVER, blank[parent]),
        label=jnp.where(grows, grown[parent, token], label[parent]),
        prior=beams.prior[parent] + jnp.where(grows, gain[parent, token], 0),
    )


def ctc_align(log_probs: Array, mask: Array, tokens: Array) -> Array:
    """Returns the frame of each token on the most probable path with these tokens (Viterbi).

    Of the frames of a token, it is the one at which it is most probable.

    Args:
      log_probs: (batch, frames, vocab) float32.
      mask: (batch, frames) bool, False for padding at the end.
      tokens: (batch, longest) int32, padded with 0.

    Returns:
      (batch, longest) int32; of padding 0.
    """

    def one(log_probs: Array, mask: Array, tokens: Array) -> Array:
        count = len(tokens)
        # Positions of a path: blank, token, blank, ..., token, blank.
        states = jnp.zeros(2 * count + 1, jnp.int32).at[1::2].set(tokens)
        skips = (states > 0) & (states != jnp.pad(states, (2, 0))[:-2])
        end = 2 * (tokens > 0).sum()

        def step(best: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
            scores, valid = frame
            one_back = jnp.pad(best, (1, 0), constant_values=NEVER)[:-1]
            two_back = jnp.where(skips, jnp.pad(best, (2, 0), constant_values=NEVER)[:-2], NEVER)
            options = jnp.stack([best, one_back, two_back])
            new = options.max(0) + scores[states]
            return jnp.where(valid, new, best), jnp.where(valid, options.argmax(0), 0)

        start = jnp.full(2 * count + 1, NEVER).at[0].set(0.0)
        best, moves = jax.lax.scan(step, start, (log_probs, mask))
        last = jnp.where((end > 0) & (best[end - 1] > best[end]), end - 1, end)

        def back(state: Array, move: Array) -> tuple[Array, Array]:
            return state - move[state], state

        _, path = jax.lax.scan(back, last, moves, reverse=True)
        path = jnp.where(mask, path, 0)
        of_token = path[:, None] == 2 * jnp.arange(count) + 1
        scores = jnp.where(of_token, log_probs[:, tokens], NEVER)
        found = scores.argmax(0).astype(jnp.int32)
        return jnp.where(tokens > 0, found, 0)

    return jax.vmap(one)(log_probs, mask, tokens)
