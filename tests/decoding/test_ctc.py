"""Decoding of CTC against all paths, and the n-gram prior against its formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.decoding import ctc_align, ctc_beam_search, ctc_greedy, ngram_log_probs

FRAMES, VOCAB = 5, 3
RNG = np.random.default_rng(0)
LOG_PROBS = jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(6, FRAMES, VOCAB)) * 1.5))
MASK = jnp.arange(FRAMES) < jnp.array([5, 5, 5, 4, 3, 5])[:, None]


def collapsed(path):
    return tuple(label for label, _ in itertools.groupby(path) if label)


def sums(row):
    """Log-probability of each sequence of labels, summed over all paths; and the best paths."""
    count = int(MASK[row].sum())
    totals, best = {}, {}
    for path in itertools.product(range(VOCAB), repeat=count):
        score = float(sum(LOG_PROBS[row, t, label] for t, label in enumerate(path)))
        key = collapsed(path)
        totals[key] = np.logaddexp(totals.get(key, -np.inf), score)
        best[key] = max(best.get(key, (-np.inf, ())), (score, path))
    return totals, best


@pytest.fixture(scope="module")
def all_paths():
    return [sums(row) for row in range(len(LOG_PROBS))]


def shown(tokens):
    return [tuple(int(token) for token in row if token) for row in np.asarray(tokens)]


def test_greedy_collapses_the_best_path():
    found = ctc_greedy(LOG_PROBS, MASK)
    for row, tokens in enumerate(shown(found.tokens)):
        path = np.asarray(LOG_PROBS[row].argmax(-1))[: int(MASK[row].sum())]
        assert tokens == collapsed(path)
        for token, frame in zip(tokens, np.asarray(found.frames[row]), strict=False):
            assert path[frame] == token
            assert frame == 0 or path[frame - 1] != token


def test_a_wide_beam_finds_the_most_probable_sequence(all_paths):
    found = shown(ctc_beam_search(LOG_PROBS, MASK, beam_width=16).tokens)
    assert found == [max(totals, key=totals.get) for totals, _ in all_paths]


def test_the_prior_and_the_bonus_are_added(all_paths):
    prior = ngram_log_probs([[0, 2, 3], [2, 2, 5], [2, 0, 3], [1, 0, 1]], VOCAB)

    def score(totals, tokens):
        steps = itertools.pairwise((0, *tokens, 0))
        return totals[tokens] + 0.7 * sum(prior[a, b] for a, b in steps) + 0.3 * len(tokens)

    options = {"beam_width": 16, "prior": prior, "prior_weight": 0.7, "token_bonus": 0.3}
    found = shown(ctc_beam_search(LOG_PROBS, MASK, **options).tokens)
    expected = [max(t, key=lambda k, t=t: score(t, k)) for t, _ in all_paths]
    assert found == expected
    assert found != [max(totals, key=totals.get) for totals, _ in all_paths]


def test_alignment_is_that_of_the_best_path(all_paths):
    for tokens in ((1,), (1, 2), (2, 2)):
        rows = jnp.tile(jnp.array([*tokens, 0]), (len(MASK), 1))
        found = ctc_align(LOG_PROBS, MASK, rows)
        for row, (_, best) in enumerate(all_paths):
            path = best[tokens][1]
            runs = [
                [place for place, _ in run]
                for label, run in itertools.groupby(enumerate(path), key=lambda item: item[1])
                if label
            ]
            for frames, token, frame in zip(runs, tokens, np.asarray(found[row]), strict=False):
                assert frame == max(frames, key=lambda t, k=token, r=row: LOG_PROBS[r, t, k])


def test_ngrams_are_interpolated():
    # Witten and Bell: 3 of 4 after token 1 are 2, of 2 kinds; of all 8 tokens 5 are 2, of 3 kinds.
    found = np.exp(ngram_log_probs([[1, 2, 3], [1, 0, 1], [0, 1, 2], [2, 2, 2]], VOCAB))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    single = (5 + 3 / 3) / (8 + 3)
    assert found[1, 2] == pytest.approx((3 + 2 * single) / (4 + 2))
