"""Encoder-decoders: causality, and decoding with a cache equal to the whole target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.data.tokenizers import BOS, EOS, MASK, PAD
from jdl.decoding import greedy
from jdl.decoding.translation import decoder
from tests.translations import LSTM, MODELS, made, tokens


@pytest.mark.parametrize(
    ("name", "copies"), [("transformer", 1), ("transformer", 2), ("lstm", 2), ("scanned", 2)]
)
def test_a_cached_decoder_gives_the_logits_of_the_whole_target(name, copies):
    model = MODELS[name]
    source, given = tokens(2, 7).at[1, 5:].set(PAD), tokens(2, 6, 1)

    @jax.jit
    def both(params):
        variables = {"params": params}
        step, cache = decoder(
            model, variables, source, 6, num_beams=copies, suppress_tokens=(PAD, MASK)
        )
        axis = 1 if name == "scanned" else 0
        cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis), cache)

        def one(cache, at):
            logits, cache = step(jnp.repeat(given[:, at], copies)[:, None], at, cache)
            return cache, logits[:, 0]

        found = jax.lax.scan(one, cache, jnp.arange(6))[1]
        return jnp.swapaxes(found, 0, 1), model.apply(variables, source, given)

    found, expected = both(made(model))
    expected = jnp.repeat(expected, copies, 0).at[:, :, jnp.array([PAD, MASK])].set(-jnp.inf)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_writing_equals_choosing_again_from_all_before(name):
    model, source = MODELS[name], tokens(4, 7).at[1, 3:].set(PAD)
    variables = {"params": made(model)}
    first = jnp.full(4, BOS, jnp.int32)

    @jax.jit
    def cached():
        return greedy(*decoder(model, variables, source, 9), first, 0, 9, eos_token_id=EOS)

    again = jax.jit(lambda written: model.apply(variables, source, written).argmax(-1))
    written = np.full((4, 10), BOS, np.int32)
    for place in range(9):  # what stands behind a place does not change what follows it
        ended = (written[:, 1 : place + 1] == EOS).any(1)
        written[:, place + 1] = np.where(ended, EOS, again(written)[:, place])
    np.testing.assert_array_equal(cached(), written[:, 1:])


def test_a_row_that_has_ended_stays_so():
    """Row r writes r tokens, 5 and upward, and would go on after its end."""

    def step(given, position, cache):
        chosen = jnp.where(position == jnp.arange(3), EOS, 5 + position)
        return jax.nn.one_hot(chosen, 13)[:, None], cache

    first = jnp.full(3, BOS, jnp.int32)
    found = greedy(step, jnp.zeros(3), first, 0, 5, eos_token_id=EOS)
    expected = [[EOS] * 5, [5, *[EOS] * 4], [5, 6, *[EOS] * 3]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        greedy(step, jnp.zeros(3), first, 0, 2, eos_token_id=EOS), np.array(expected)[:, :2]
    )


def test_no_logit_of_the_lstm_depends_on_a_later_token():
    source, given = tokens(1, 7), tokens(1, 6, 1)
    params = made(LSTM)
    rows = params["embedding"][given[0]]

    def logits(rows):
        # Each place of the target has a token of its own, whose embedding is a row of the table.
        table = jnp.concatenate([params["embedding"], rows])
        wide = LSTM.clone(vocab_size=13 + 6)
        target = 13 + jnp.arange(6)[None]
        found = wide.apply({"params": {**params, "embedding": table}}, source, target)
        return found[0, :, :13].sum(-1)

    influence = np.abs(jax.jit(jax.jacrev(logits))(rows)).sum(-1)  # (of a logit, from a place)
    assert (np.triu(influence, 1) == 0).all()
    assert (influence[np.tril_indices(6)] > 0).all()


def test_the_lstm_reads_the_source_in_both_directions():
    source, params = tokens(1, 7), made(LSTM)
    others = [source.at[0, i].set(4 + (source[0, i] - 3) % 9) for i in range(7)]
    encode = jax.jit(lambda x: LSTM.apply({"params": params}, x, method="encode"))
    memory = encode(jnp.concatenate([source, *others]))
    assert (np.abs(memory[1:] - memory[0]).max(-1) > 0).all()
