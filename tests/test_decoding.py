"""Tokens from models: cached as uncached, drawn as the probabilities say, searched for exactly."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.decoding import Sampling, beam_search, draw, filtered, generate, stream, translate
from jdl.decoding.cache import batch_axes, empty, read
from jdl.errors import UserError
from jdl.models import GPT, EncoderDecoder, RecurrentLM

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[3, 1, 4], [5], [9, 2, 6, 5, 8]]
FORMS = {
    "learned": {},
    "rotary, grouped": {"positions": "rotary", "kv_heads": 1, "norm": "rms", "gated": True},
    "scanned": {"scan": True},
}
CONTEXT = 16


def gpt(**options):
    return GPT(
        **{"vocabulary": 11, "context": CONTEXT, "layers": 2, "heads": 2, "width": 16} | options
    )


def drawn(model, *inputs):
    """Parameters drawn wide, so that what a model says depends much on what it has read."""
    inputs = inputs or (jnp.zeros((1, 4), jnp.int32),)
    init = functools.partial(model.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, *inputs)["params"])
    generator = np.random.default_rng(0)
    wide = [generator.normal(size=leaf.shape, scale=0.5).astype(np.float32) for leaf in leaves]
    return jax.tree.map(jnp.asarray, tree.unflatten(wide))


def telling(params):
    """Parameters of a transformer that does not always say the same."""
    factors = {"kernel": 3.0, "bias": 0.0, "embedding": 0.3}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * factors.get(path[-1].key, 1.0), params
    )


def logits_of(model, params, context=CONTEXT):
    """A function of a text that gives the logits after it; compiled once, for a causal model."""
    said = jax.jit(lambda tokens: model.apply({"params": params}, tokens))

    def logits(text):
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(text)] = text
        return said(padded)[0, len(text) - 1]

    return logits


class Says(nn.Module):
    """Logits by the last token alone, from a table."""

    table: tuple[tuple[float, ...], ...]

    @nn.compact
    def __call__(self, tokens, positions=None, decode=False):
        if decode:
            self.put_variable("cache", "rows", jnp.zeros(tokens.shape[0]))
        return jnp.log(jnp.asarray(self.table))[tokens]


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
    params = telling(drawn(model))
    for sampling in (GREEDY, Sampling(temperature=1.5, top_k=8, top_p=0.95)):
        made = [
            generate(model, params, PROMPTS, 11, sampling, jax.random.key(3), cached=cached)
            for cached in (True, False)
        ]
        assert made[0].shape == (3, 11)
        assert len(np.unique(made[0])) > 3
        np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_model_goes_on_from_its_state(cell):
    model = RecurrentLM(vocabulary=11, units=8, layers=2, cell=cell, dropout=0.5)
    params = drawn(model)
    made = [generate(model, params, PROMPTS, 9, cached=cached) for cached in (True, False)]
    assert len(np.unique(made[0])) > 3
    np.testing.assert_array_equal(*made)


def test_greedy_tokens_are_the_argmax_of_what_the_model_says():
    for model in (gpt(), Plain()):
        params = drawn(model)
        logits = logits_of(model, params)
        made = generate(model, params, PROMPTS, 8, GREEDY)
        for prompt, row in zip(PROMPTS, made, strict=True):
            text = list(prompt)
            for token in row:
                assert token == logits(text).argmax()
                text.append(int(token))


def test_a_row_does_not_depend_on_the_other_rows():
    model, key = gpt(), jax.random.key(5)
    params = drawn(model)
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
    found = filtered(jnp.asarray(logits), Sampling(temperature, top_k, top_p))
    expected = [numpy_filter(row, temperature, top_k, top_p) for row in logits]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_tokens_are_drawn_as_often_as_the_model_says():
    chances = (0.5, 0.25, 0.15, 0.1)
    model, count = Says((chances,) * 4), 4000
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
    model, prompts = Says(table), [[0], [4], [3, 3, 1]]
    expected = [[1, 2, 3, 3, 3, 3], [4] * 6, [2, 3, 3, 3, 3, 3]]
    for cached in (True, False):
        found = generate(model, {}, prompts, 6, GREEDY, end=3, cached=cached)
        np.testing.assert_array_equal(found, expected)
    # All have ended: nothing more is made, though much more was asked for.
    parts = list(stream(model, {}, [0], 10**4, GREEDY, end=3, chunk=2, samples=2))
    np.testing.assert_array_equal(np.concatenate(parts, 1), [[1, 2, 3]] * 2)


def test_a_stream_gives_the_same_tokens_bit_by_bit():
    model, key = gpt(), jax.random.key(2)
    params = drawn(model)
    whole = generate(model, params, [[3, 1, 4]] * 2, 13, key=key)
    parts = list(stream(model, params, [3, 1, 4], 13, key=key, samples=2, chunk=5))
    assert [part.shape for part in parts] == [(2, 5), (2, 5), (2, 3)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_a_stream_goes_on_beyond_the_context_from_its_last_half():
    model = gpt(context=8)
    params = drawn(model)
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
    chances = Says(((0.25,) * 4,) * 4)
    found = np.concatenate(list(stream(chances, {}, [0], 40, context=8, chunk=40)), 1)[0]
    assert (found[:5] != found[8:13]).any()
    assert (found[8:13] != found[13:18]).any()
    assert [part.shape[1] for part in stream(chances, {}, [0], 20, context=8)] == [8, 5, 5, 2]


def test_tokens_beyond_the_size_are_never_drawn():
    model = Says(((0.01, 0.01, 0.98),) * 3)
    found = np.concatenate(list(stream(model, {}, [0], 50, size=2)), 1)
    assert set(np.unique(found)) == {0, 1}


def search(model, params, prompts, length, **options):
    """Beam search with a language model, after prompts (rows, time)."""
    prompts = jnp.asarray(prompts, jnp.int32)
    rows, time = prompts.shape
    variables = {"params": params}

    @jax.jit
    def found():
        cache = empty(model, variables, rows, time + length)
        if time > 1:
            _, cache = read(model, variables, prompts[:, :-1], jnp.int32(0), cache)
        return beam_search(
            functools.partial(read, model, variables), cache,
            batch_axes(lambda rows: empty(model, variables, rows, 1)),
            prompts[:, -1], time - 1, length, **options,
        )  # fmt: skip

    tokens, scores = found()
    return np.array(tokens), np.array(scores)


def texts(size, length, end):
    """All texts: those that end, and those that reach the length without an end."""
    for text in itertools.product(range(size), repeat=length):
        if end not in text:
            yield text
    for count in range(1, length + 1):
        for text in itertools.product(range(size), repeat=count - 1):
            if end not in text:
                yield (*text, end)


def best(score, size, length, end, alpha):
    """The best of all texts, filled up with the end, and its score."""
    penalised = {
        text: float(score(text)) / ((5 + len(text)) / 6) ** alpha
        for text in texts(size, length, end)
    }
    text = max(penalised, key=penalised.__getitem__)
    return [*text, *[end] * (length - len(text))], penalised[text]


@pytest.mark.parametrize(("scan", "alpha"), [(False, 0.0), (True, 1.0)])
def test_a_wide_beam_finds_the_best_of_all_texts(scan, alpha):
    model = gpt(vocabulary=3, scan=scan)
    params = drawn(model)
    prompts, length = [[1, 2], [2, 0], [0, 1]], 4
    every = np.array(list(itertools.product(range(3), repeat=length)))
    said = jax.jit(model.apply)
    tokens, scores = search(model, params, prompts, length, end=0, beams=3**length, alpha=alpha)
    for prompt, found, found_score in zip(prompts, tokens, scores, strict=True):
        given = np.concatenate([np.tile(prompt, (len(every), 1)), every], 1)
        logs = said({"params": params}, jnp.asarray(given[:, :-1]))
        steps = np.take_along_axis(np.array(jax.nn.log_softmax(logs))[:, 1:], every[..., None], 2)[
            ..., 0
        ]
        known = {
            tuple(text[:n]): row[:n].sum()
            for text, row in zip(every.tolist(), steps, strict=True)
            for n in range(1, length + 1)
        }
        expected, score = best(known.__getitem__, 3, length, 0, alpha)
        assert found.tolist() == expected
        assert found_score == pytest.approx(score, rel=1e-4)


def test_one_beam_is_greedy():
    model = gpt()
    params = drawn(model)
    prompts = [[3, 1], [5, 9], [2, 6]]
    greedy = generate(model, params, prompts, 10, GREEDY)
    for end in (None, int(greedy[1, 3])):
        expected = generate(model, params, prompts, 10, GREEDY, end=end)
        tokens, _ = search(model, params, prompts, 10, beams=1, end=end)
        np.testing.assert_array_equal(tokens, expected)


def test_two_beams_find_what_greed_misses():
    # After 0, 1 is likelier than 2; but after 1 nothing is likely, and after 2 the end is.
    table = ((0.0, 0.55, 0.45, 0.0), (0.3, 0.4, 0.3, 0.0), (0.0, 0.05, 0.05, 0.9), (0, 0, 0, 1.0))
    model = Says(table)
    greedy, chance = search(model, {}, [[0]], 2, end=3, beams=1)
    assert (greedy.tolist(), chance[0]) == ([[1, 1]], pytest.approx(np.log(0.55 * 0.4)))
    found, chance = search(model, {}, [[0]], 2, end=3, beams=2)
    assert (found.tolist(), chance[0]) == ([[2, 3]], pytest.approx(np.log(0.45 * 0.9)))


def test_the_length_penalty_is_that_of_the_paper():
    # To end at once has the probability 0.4, to end after three more 0.6 * 0.7 ** 2 = 0.294.
    table = ((0.0, 0.6, 0.4), (0.0, 0.7, 0.3), (0.0, 0.0, 1.0))
    longer = Says(((0.0, 0.6, 0.4), (0.0, 0.98, 0.02), (0.0, 0.0, 1.0)))
    short, score = search(Says(table), {}, [[0]], 3, end=2, beams=2, alpha=0.0)
    assert short.tolist() == [[2, 2, 2]]
    assert score[0] == pytest.approx(np.log(0.4))
    found, score = search(longer, {}, [[0]], 3, end=2, beams=2, alpha=1.0)
    assert found.tolist() == [[1, 1, 1]]
    assert score[0] == pytest.approx(np.log(0.6 * 0.98**2) * 6 / 8, rel=1e-5)


def translator(vocabulary=4):
    """A model whose words depend much on the source, and three sources."""
    model = EncoderDecoder(
        vocabulary=vocabulary, context=12, layers=2, heads=2, width=8, dropout=0.0
    )
    sources = jnp.array([[1, 2, 3, 3, 1], [3, 1, 2, 0, 0], [2, 2, 0, 0, 0]], jnp.int32)
    return model, telling(drawn(model, sources, sources)), sources


def translated(model, params, sources, length, **options):
    def run(params, sources):
        return translate(model, {"params": params}, sources, length, begin=1, end=2, **options)

    return np.array(jax.jit(run)(params, sources))


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_wide_beam_finds_the_best_translation(alpha):
    model, params, sources = translator()
    length, begin, end = 3, 1, 2
    found = translated(model, params, sources, length, beams=4**length, alpha=alpha)
    said, every = jax.jit(model.apply), np.array(list(itertools.product(range(4), repeat=length)))
    for source, tokens in zip(sources, found, strict=True):
        given = np.concatenate([np.full((len(every), 1), begin), every[:, :-1]], 1)
        wide = jnp.tile(source, (len(every), 1))
        logits = said({"params": params}, wide, jnp.asarray(given, jnp.int32))
        steps = np.take_along_axis(np.array(jax.nn.log_softmax(logits)), every[..., None], 2)
        known = {
            tuple(text[:n]): row[:n, 0].sum()
            for text, row in zip(every.tolist(), steps, strict=True)
            for n in range(1, length + 1)
        }
        assert tokens.tolist() == best(known.__getitem__, 4, length, end, alpha)[0]


def test_a_translation_depends_on_its_source_alone_and_not_on_padding():
    beams = 2
    model, params, sources = translator(vocabulary=17)
    together = translated(model, params, sources, 8, beams=beams)
    assert len({tuple(row) for row in together.tolist()}) > 1
    for source, tokens in zip(sources, together, strict=True):
        bare = source[source != 0][None]
        np.testing.assert_array_equal(translated(model, params, bare, 8, beams=beams)[0], tokens)


def test_the_coldest_draw_is_the_likeliest_token():
    logits, keys = jnp.array([[1.0, 3.0, 2.0]]), jax.random.split(jax.random.key(0), 1)
    for temperature in (1e-29, 1e-31, 1e-42):
        assert draw(logits, Sampling(temperature), keys) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: generate(m, p, [], 3), "no prompt to go on with"),
        (lambda m, p: generate(m, p, [[1], []], 3), "the prompt is empty"),
        (lambda m, p: generate(m, p, [[1, 11]], 3), r"the token 11, where the model knows 0\.\.10"),
        (lambda m, p: generate(m, p, [[-1]], 3), "the token -1"),
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
        (lambda m, p: search(m, p, [[1]], 3, beams=0), "beams of at least 1, not 0"),
        (lambda m, p: search(m, p, [[1]], 3, alpha=-1.0), "alpha of at least 0, not -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, message, monkeypatch):
    model = gpt()
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    if "search" in call.__code__.co_names:
        params = drawn(model)
    with pytest.raises(UserError, match=message):
        call(model, params)


def test_targets_beyond_the_context_are_refused():
    model, params, sources = translator()
    with pytest.raises(UserError, match=r"targets of 13 tokens do not fit .* of 12"):
        translated(model, params, sources, 13)
