"""The encoder of speech: padding changes nothing, and a causal one works chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.errors import UserError
from jdl.models import SpeechEncoder

SIZES = {"num_classes": 5, "embed_dim": 8, "kernel_size": 3, "dilations": (1, 2), "stride": 4}


def made(**fields):
    model = SpeechEncoder(**SIZES, **fields)
    x = jax.random.normal(jax.random.key(1), (2, 40, 6))
    variables = jax.jit(model.init)(jax.random.key(0), x, jnp.ones((2, 40), bool))
    # Biases of 0 would hide what leaks from padding.
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), variables["params"]
    )
    return model, {"params": params}, x


def compiled(model):
    return jax.jit(model.apply, static_argnames=("stream", "mutable"))


@pytest.mark.parametrize("fields", [{}, {"causal": True, "lookahead": 2}])
def test_padding_changes_nothing(fields):
    model, variables, x = made(**fields)
    mask = jnp.arange(40) < jnp.array([[22], [40]])
    apply = compiled(model)
    logits, kept = apply(variables, x, mask)
    assert logits.shape == (2, 10, 5)
    assert kept.sum(1).tolist() == [6, 10]
    alone, _ = apply(variables, x[:1, :22], jnp.ones((1, 22), bool))
    np.testing.assert_allclose(logits[0, :6], alone[0], atol=1e-5)


def test_a_causal_encoder_sees_no_more_than_its_lookahead():
    model, variables, x = made(causal=True, lookahead=1)
    mask = jnp.ones((2, 40), bool)
    apply = compiled(model)
    first, _ = apply(variables, x, mask)
    other, _ = apply(variables, x.at[:, 20:].set(0), mask)
    np.testing.assert_array_equal(first[:, :4], other[:, :4])  # step 4 ends at frame 20
    assert not np.array_equal(first[:, 4], other[:, 4])


@pytest.mark.parametrize("lookahead", [0, 2])
def test_chunks_give_the_logits_of_the_whole(lookahead):
    model, variables, x = made(causal=True, lookahead=lookahead)
    apply = compiled(model)
    whole, _ = apply(variables, x, jnp.ones((2, 40), bool))
    parts, cache = [], {}
    flush = jnp.zeros((2, 4 * lookahead, 6))
    for chunk in (x[:, :8], x[:, 8:12], x[:, 12:36], x[:, 36:], flush):
        if chunk.shape[1]:
            is_sound = jnp.full(chunk.shape[:2], chunk is not flush)
            (logits, _), new = apply(
                {**variables, "cache": cache}, chunk, is_sound, stream=True, mutable="cache"
            )
            cache = new["cache"]
            parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1)[:, lookahead:], whole, atol=1e-5)


def test_wrong_fields():
    with pytest.raises(UserError, match=r"lookahead is of a causal one"):
        made(lookahead=2)
    model, variables, x = made()
    with pytest.raises(UserError, match=r"streams only if it is causal"):
        model.apply(variables, x, jnp.ones((2, 40), bool), stream=True, mutable=["cache"])
