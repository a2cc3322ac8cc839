"""Beam search finds the optimum when its beams hold every sequence."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.decoding import beam_search, generate, translate
from jdl.decoding.cache import apply_with_cache, batch_axes, init_cache
from jdl.errors import UserError
from jdl.models import EncoderDecoder
from tests.language_models import GREEDY, TableModel, diversified, gpt, random_params


def search(model, params, prompts, length, **options):
    """Beam search with a language model, after prompts (rows, time)."""
    prompts = jnp.asarray(prompts, jnp.int32)
    rows, time = prompts.shape
    variables = {"params": params}

    @jax.jit
    def found():
        cache = init_cache(model, variables, rows, time + length)
        if time > 1:
            _, cache = apply_with_cache(model, variables, prompts[:, :-1], jnp.int32(0), cache)
        return beam_search(
            functools.partial(apply_with_cache, model, variables), cache,
            batch_axes(lambda rows: init_cache(model, variables, rows, 1)),
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
    model = gpt(vocab_size=3, scan=scan)
    params = random_params(model)
    prompts, length = [[1, 2], [2, 0], [0, 1]], 4
    every = np.array(list(itertools.product(range(3), repeat=length)))
    forward = jax.jit(model.apply)
    tokens, scores = search(
        model, params, prompts, length, eos_token_id=0, num_beams=3**length, alpha=alpha
    )
    for prompt, found, found_score in zip(prompts, tokens, scores, strict=True):
        given = np.concatenate([np.tile(prompt, (len(every), 1)), every], 1)
        logs = forward({"params": params}, jnp.asarray(given[:, :-1]))
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
    params = random_params(model)
    prompts = [[3, 1], [5, 9], [2, 6]]
    greedy = generate(model, params, prompts, 10, GREEDY)
    for end in (None, int(greedy[1, 3])):
        expected = generate(model, params, prompts, 10, GREEDY, eos_token_id=end)
        tokens, _ = search(model, params, prompts, 10, num_beams=1, eos_token_id=end)
        np.testing.assert_array_equal(tokens, expected)


def test_two_beams_find_what_greed_misses():
    # After 0, 1 is likelier than 2; but after 1 nothing is likely, and after 2 the end is.
    table = ((0.0, 0.55, 0.45, 0.0), (0.3, 0.4, 0.3, 0.0), (0.0, 0.05, 0.05, 0.9), (0, 0, 0, 1.0))
    model = TableModel(table)
    greedy, chance = search(model, {}, [[0]], 2, eos_token_id=3, num_beams=1)
    assert (greedy.tolist(), chance[0]) == ([[1, 1]], pytest.approx(np.log(0.55 * 0.4)))
    found, chance = search(model, {}, [[0]], 2, eos_token_id=3, num_beams=2)
    assert (found.tolist(), chance[0]) == ([[2, 3]], pytest.approx(np.log(0.45 * 0.9)))


def test_the_length_penalty_is_that_of_the_paper():
    # To end at once has the probability 0.4, to end after three more 0.6 * 0.7 ** 2 = 0.294.
    table = ((0.0, 0.6, 0.4), (0.0, 0.7, 0.3), (0.0, 0.0, 1.0))
    longer = TableModel(((0.0, 0.6, 0.4), (0.0, 0.98, 0.02), (0.0, 0.0, 1.0)))
    short, score = search(TableModel(table), {}, [[0]], 3, eos_token_id=2, num_beams=2, alpha=0.0)
    assert short.tolist() == [[2, 2, 2]]
    assert score[0] == pytest.approx(np.log(0.4))
    found, score = search(longer, {}, [[0]], 3, eos_token_id=2, num_beams=2, alpha=1.0)
    assert found.tolist() == [[1, 1, 1]]
    assert score[0] == pytest.approx(np.log(0.6 * 0.98**2) * 6 / 8, rel=1e-5)


def translator(vocabulary=4):
    """A model whose words depend much on the source, and three sources."""
    model = EncoderDecoder(
        vocab_size=vocabulary,
        max_position_embeddings=12,
        num_layers=2,
        num_heads=2,
        embed_dim=8,
        dropout_rate=0.0,
    )
    sources = jnp.array([[1, 2, 3, 3, 1], [3, 1, 2, 0, 0], [2, 2, 0, 0, 0]], jnp.int32)
    return model, diversified(random_params(model, sources, sources)), sources


def translated(model, params, sources, length, **options):
    def run(params, sources):
        return translate(
            model, {"params": params}, sources, length, bos_token_id=1, eos_token_id=2, **options
        )

    return np.array(jax.jit(run)(params, sources))


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_wide_beam_finds_the_best_translation(alpha):
    model, params, sources = translator()
    length, begin, end = 3, 1, 2
    found = translated(model, params, sources, length, num_beams=4**length, alpha=alpha)
    forward, every = (
        jax.jit(model.apply),
        np.array(list(itertools.product(range(4), repeat=length))),
    )
    for source, tokens in zip(sources, found, strict=True):
        given = np.concatenate([np.full((len(every), 1), begin), every[:, :-1]], 1)
        wide = jnp.tile(source, (len(every), 1))
        logits = forward({"params": params}, wide, jnp.asarray(given, jnp.int32))
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
    together = translated(model, params, sources, 8, num_beams=beams)
    assert len({tuple(row) for row in together.tolist()}) > 1
    for source, tokens in zip(sources, together, strict=True):
        bare = source[source != 0][None]
        np.testing.assert_array_equal(
            translated(model, params, bare, 8, num_beams=beams)[0], tokens
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams of at least 1, not 0"),
        ({"alpha": -1.0}, "alpha of at least 0, not -1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(options, message):
    model = gpt()
    with pytest.raises(UserError, match=message):
        search(model, random_params(model), [[1]], 3, **options)


def test_targets_beyond_the_context_are_refused():
    model, params, sources = translator()
    with pytest.raises(UserError, match=r"targets of 13 tokens do not fit .* of 12"):
        translated(model, params, sources, 13)
