"""Decoding: cached equals uncached, and samples follow the probabilities."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.decoding import Sampling, filter_logits, generate, sample, stream
from jdl.errors import UserError
from jdl.models import RecurrentLM
from tests.language_models import CONTEXT, GREEDY, TableModel, diversified, gpt, random_params

PROMPTS = [[3, 1, 4], [5], [9, 2, 6, 5, 8]]
FORMS = {
    "learned": {},
    "rotary, grouped": {
        "position_embedding": "rotary",
        "num_kv_heads": 1,
        "norm": "rms",
        "gated": True,
    },
    "scanned": {"scan": True},
}


def logits_of(model, params, context=CONTEXT):
    """A function of a text that gives the logits after it; compiled once, for a causal model."""
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))

    def logits(text):
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(text)] = text
        return forward(padded)[0, len(text) - 1]

    return logits


class Plain(nn.Module):
    """A causal model without a cache: logits by the mean of all tokens so far."""

    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(11, 8)(tokens)
        x = jnp.cumsum(x, 1) / jnp.arange(1, tokens.shape[1] + 1)[:, None]
        return nn.Dense(11)(x)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_cached_tokens_equal_uncached_ones(options):
    model = gpt(**options)
    params = diversified(random_params(model))
    for sampling in (GREEDY, Sampling(temperature=1.5, top_k=8, top_p=0.95)):
        made = [
            generate(model, params, PROMPTS, 11, sampling, jax.random.key(3), use_cache=cached)
            for cached in (True, False)
        ]
        assert made[0].shape == (3, 11)
        assert len(np.unique(made[0])) > 3
        np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_model_goes_on_from_its_state(cell):
    model = RecurrentLM(vocab_size=11, hidden_size=8, num_layers=2, cell=cell, dropout_rate=0.5)
    params = random_params(model)
    made = [generate(model, params, PROMPTS, 9, use_cache=cached) for cached in (True, False)]
    assert len(np.unique(made[0])) > 3
    np.testing.assert_array_equal(*made)


def test_greedy_tokens_are_the_argmax_of_what_the_model_says():
    for model in (gpt(), Plain()):
        params = random_params(model)
        logits = logits_of(model, params)
        made = generate(model, params, PROMPTS, 8, GREEDY)
        for prompt, row in zip(PROMPTS, made, strict=True):
            text = list(prompt)
            for token in row:
                assert token == logits(text).argmax()
                text.append(int(token))


def test_a_row_does_not_depend_on_the_other_rows():
    model, key = gpt(), jax.random.key(5)
    params = random_params(model)
    together = generate(model, params, PROMPTS, 9, key=key)
    for others in ([], [[1, 2, 3, 4, 5, 6, 7]], [[7], [8, 8]]):
        found = generate(model, params, [PROMPTS[0], *others], 9, key=key)
        np.testing.assert_array_equal(found[0], together[0])
    twice = generate(model, params, [PROMPTS[0]] * 2, 9, key=key)
    assert (twice[0] != twice[1]).any()


def numpy_filter(logits, temperature, top_k, top_p):
    """The definition, token by token."""
    logits = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-logits)[:top_k]
    chances = np.exp(logits[order])
    chances /= chances.sum()
    kept, mass = [], 0.0
    for token, chance in zip(order, chances, strict=True):
        if top_p is not None and mass >= top_p:
            break
        kept.append(token)
        mass += chance
    result = np.full(len(logits), -np.inf)
    result[kept] = logits[kept]
    return result


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 50])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.4, 0.9, 1.0])
def test_filters_equal_their_definition(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(4, 17)).astype(np.float32) * 2
    found = filter_logits(jnp.asarray(logits), Sampling(temperature, top_k, top_p))
    expected = [numpy_filter(row, temperature, top_k, top_p) for row in logits]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_tokens_are_drawn_as_often_as_the_model_says():
    chances = (0.5, 0.25, 0.15, 0.1)
    model, count = TableModel((chances,) * 4), 4000
    made = generate(model, {}, [[0]] * count, 2, key=jax.random.key(1))
    for sampling, expected in (
        (Sampling(), chances),
        (Sampling(temperature=0.5), np.square(chances) / np.square(chances).sum()),
        (Sampling(top_k=2), (2 / 3, 1 / 3, 0, 0)),
        (Sampling(top_p=0.8), np.array([0.5, 0.25, 0.15, 0]) / 0.9),
    ):
        made = generate(model, {}, [[0]] * count, 2, sampling, jax.random.key(1))
        for column in made.T:
            shares = np.bincount(column, minlength=4) / count
            # Four standard deviations of a share.
            tolerance = 4 * np.sqrt(np.multiply(expected, 1 - np.asarray(expected)) / count)
            assert (np.abs(shares - expected) <= tolerance + 1e-9).all()
    # What a row draws first says nothing of what it draws next.
    together = np.bincount(made[:, 0] * 4 + made[:, 1], minlength=16).reshape(4, 4) / count
    np.testing.assert_allclose(together, np.outer(expected, expected), atol=0.03)


def test_a_row_that_has_ended_holds_the_end_and_the_others_go_on():
    after = {0: 1, 1: 2, 2: 3, 3: 0, 4: 4}
    table = tuple(tuple(float(after[i] == j) + 1e-9 for j in range(5)) for i in range(5))
    model, prompts = TableModel(table), [[0], [4], [3, 3, 1]]
    expected = [[1, 2, 3, 3, 3, 3], [4] * 6, [2, 3, 3, 3, 3, 3]]
    for cached in (True, False):
        found = generate(model, {}, prompts, 6, GREEDY, eos_token_id=3, use_cache=cached)
        np.testing.assert_array_equal(found, expected)
    # All have ended: nothing more is made, though much more was asked for.
    parts = list(stream(model, {}, [0], 10**4, GREEDY, eos_token_id=3, chunk=2, samples=2))
    np.testing.assert_array_equal(np.concatenate(parts, 1), [[1, 2, 3]] * 2)


def test_a_stream_gives_the_same_tokens_bit_by_bit():
    model, key = gpt(), jax.random.key(2)
    params = random_params(model)
    whole = generate(model, params, [[3, 1, 4]] * 2, 13, key=key)
    parts = list(stream(model, params, [3, 1, 4], 13, key=key, samples=2, chunk=5))
    assert [part.shape for part in parts] == [(2, 5), (2, 5), (2, 3)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_a_stream_goes_on_beyond_the_context_from_its_last_half():
    model = gpt(max_position_embeddings=8)
    params = random_params(model)
    logits = logits_of(model, params, 8)
    parts = list(stream(model, params, [3, 1, 4], 20, GREEDY, chunk=4))
    text, read_from = [3, 1, 4], 0
    for token in np.concatenate(parts, 1)[0]:
        if len(text) - read_from > 8:
            read_from = len(text) - 4
        assert token == logits(text[read_from:]).argmax()
        text.append(int(token))
    assert len(text) == 23
    # No draw is made twice with one key.
    chances = TableModel(((0.25,) * 4,) * 4)
    found = np.concatenate(list(stream(chances, {}, [0], 40, context_length=8, chunk=40)), 1)[0]
    assert (found[:5] != found[8:13]).any()
    assert (found[8:13] != found[13:18]).any()
    assert [part.shape[1] for part in stream(chances, {}, [0], 20, context_length=8)] == [
        8,
        5,
        5,
        2,
    ]


def test_tokens_beyond_the_size_are_never_drawn():
    model = TableModel(((0.01, 0.01, 0.98),) * 3)
    found = np.concatenate(list(stream(model, {}, [0], 50, vocab_size=2)), 1)
    assert set(np.unique(found)) == {0, 1}


def test_the_coldest_draw_is_the_likeliest_token():
    logits, keys = jnp.array([[1.0, 3.0, 2.0]]), jax.random.split(jax.random.key(0), 1)
    for temperature in (1e-29, 1e-31, 1e-42):
        assert sample(logits, Sampling(temperature), keys) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: generate(m, p, [], 3), "no prompt to continue"),
        (lambda m, p: generate(m, p, [[1], []], 3), "the prompt is empty"),
        (lambda m, p: generate(m, p, [[1, 11]], 3), r"token 11, .* vocabulary 0\.\.10"),
        (lambda m, p: generate(m, p, [[-1]], 3), "has token -1"),
        (lambda m, p: generate(m, p, [[1]], 0), "at least 1, not 0"),
        (lambda m, p: generate(m, p, [[1], [1] * 7], 11), "a prompt of 7 tokens and 11 more do not "
                                                          "fit the model's context of 16"),
        (lambda m, p: stream(m, p, [1] * 17, 3), "the prompt has 17 tokens, more than .* 16"),
        (lambda m, p: stream(m, p, [], 3), "the prompt is empty"),
        (lambda m, p: Sampling(temperature=-0.5), "temperature must be 0 or more, not -0.5"),
        (lambda m, p: Sampling(temperature=float("nan")), "temperature must be 0 or more, not nan"),
        (lambda m, p: Sampling(top_k=0), "top_k must leave 1 token or more, not 0"),
        (lambda m, p: Sampling(top_p=0.0), r"top_p is a probability in \(0, 1\], not 0"),
        (lambda m, p: Sampling(top_p=1.5), r"top_p is a probability in \(0, 1\], not 1.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, message):
    model = gpt()
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    with pytest.raises(UserError, match=message):
        call(model, params)
