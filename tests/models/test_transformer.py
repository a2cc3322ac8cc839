"""The transformer's body: masks hide and reveal the right positions in every variant."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.errors import UserError
from jdl.layers import Attention, rotary, segment_positions, sinusoidal
from jdl.models import (
    BERT,
    GPT,
    GPT2,
    GPT2XL,
    BERTBase,
    BERTLarge,
    EncoderDecoder,
    GPT2Large,
    GPT2Medium,
    TransformerBase,
    ViT,
    ViTBase16,
    ViTLarge16,
    ViTSmall16,
    ViTTiny16,
)

FORMS = {
    "gpt": {},
    "llama": {
        "position_embedding": "rotary", "norm": "rms", "gated": True, "activation": nn.silu,
        "num_kv_heads": 1, "use_bias": False, "tie_word_embeddings": False,
    },
    "sinusoidal, grouped": {"position_embedding": "sinusoidal", "num_kv_heads": 2, "num_heads": 4},
    "scanned": {"scan": True},
    "rematerialised": {"remat": True},
}  # fmt: skip


def gpt(**options):
    return GPT(
        **{
            "vocab_size": 11,
            "max_position_embeddings": 12,
            "num_layers": 2,
            "num_heads": 2,
            "embed_dim": 16,
        }
        | options
    )


def made(model, *inputs):
    """Parameters drawn wide, so that nothing is hidden by small initial kernels."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def applied(model, params, *inputs, **named):
    """The model's output, computed at once rather than operation by operation."""
    static = tuple((name, value) for name, value in named.items() if not hasattr(value, "shape"))
    arrays = {name: value for name, value in named.items() if hasattr(value, "shape")}
    variables = params if "params" in params else {"params": params}
    return compiled(model, static)(variables, inputs, arrays)


@functools.cache
def compiled(model, static):
    """`applied`, whose shapes and values may yet differ."""

    def run(variables, inputs, arrays):
        return model.apply(variables, *inputs, **arrays, **dict(static))

    return jax.jit(run)


def tokens(rows=2, time=12, size=11, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, size, (rows, time)), jnp.int32)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_gradients_of_a_logit_with_respect_to_later_tokens_are_zero(options):
    model, given = gpt(**options), tokens(1)
    params = made(model, given)
    table = params["tokens"]["embedding"]

    def logits(rows):
        # Each place has a token of its own, whose embedding is a row of the table.
        extended = {**params, "tokens": {"embedding": jnp.concatenate([rows, table])}}
        if "logits" in params:
            extended["logits"] = jnp.concatenate([jnp.zeros_like(rows), params["logits"]])
        wide = model.clone(vocab_size=12 + 11)
        return wide.apply({"params": extended}, jnp.arange(12)[None])[0, :, 12:].sum(-1)

    influence = np.abs(jax.jit(jax.jacrev(logits))(table[given[0]])).sum(
        -1
    )  # (of a logit, from a place)
    assert (np.triu(influence, 1) == 0).all()
    assert (np.tril(influence)[np.tril_indices(12)] > 0).all()


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_cached_logits_equal_uncached_ones_token_for_token(options):
    model, given = gpt(**options), tokens()
    params = made(model, given)
    expected = applied(model, params, given)
    at = jnp.arange(12)[None]
    step = functools.partial(applied, model, decode=True, mutable="cache")
    cache, found = step(params, jnp.zeros_like(given), positions=at)[1], []
    for begin, end in [(0, 5), (5, 6), (6, 9), *((i, i + 1) for i in range(9, 12))]:
        logits, cache = step(
            {"params": params, **cache}, given[:, begin:end], positions=at[:, begin:end]
        )
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", list(FORMS.values())[:3], ids=list(FORMS)[:3])
def test_packed_documents_score_as_each_alone(options):
    model, given = gpt(**options), tokens(1)
    params = made(model, given)
    lengths = (5, 1, 6)
    segments = jnp.repeat(jnp.arange(3), jnp.array(lengths), total_repeat_length=12)[None]
    packed = applied(model, params, given, segments=segments)
    parts = jnp.split(given, [5, 6], axis=1)
    alone = [applied(model, params, part) for part in parts]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, 1), rtol=1e-4, atol=1e-5)


def test_positions_begin_anew_with_each_segment():
    segments = jnp.array([[4, 4, 4, 7, 8, 8], [0, 0, 0, 0, 0, 0]])
    expected = [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(segment_positions(segments), expected)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = jnp.arange(20)[None]

    def turned(x):
        return rotary(jnp.broadcast_to(x, (1, 20, 1, 8)), at)[0, :, 0]

    scores = np.asarray(turned(query) @ turned(key).T)
    for distance in range(-19, 20):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(scores[0, 0] - scores[0, 5]) > 1e-3
    np.testing.assert_allclose(scores[0, 0], (query * key).sum(), rtol=1e-5)


def test_the_mean_over_positions_leaves_out_padding():
    model = BERT(
        vocab_size=11, max_position_embeddings=12, num_layers=1, num_heads=2, embed_dim=8,
        num_classes=0, pool="mean",
    )  # fmt: skip
    given = jnp.array([[3, 4, 5, 0, 0], [3, 4, 5, 6, 7], [0, 0, 0, 0, 0]])
    params = made(model, given)
    assert "pooler" not in params
    found = applied(model, params, given)
    np.testing.assert_allclose(found[:1], applied(model, params, given[:1, :3]), atol=1e-5)
    short = model.clone(num_classes=2)
    logits = made(short, given)["logits"]
    both = {**params, "logits": logits}
    expected = found @ logits["kernel"] + logits["bias"]
    np.testing.assert_allclose(applied(short, both, given), expected, atol=1e-4)
    assert not found[2].any()
    slope = jax.grad(lambda p: applied(model, p, given).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_sinusoids_equal_the_papers_formula():
    found = sinusoidal(jnp.arange(7), 6)
    for place in range(7):
        for i in range(3):
            angle = place / 10_000 ** (2 * i / 6)
            assert found[place, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[place, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_heads_that_share_a_key_equal_heads_whose_keys_are_equal():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    shared, whole = Attention(num_heads=4, num_kv_heads=2), Attention(num_heads=4)
    params = made(shared, x)

    def repeated(leaf):  # (..., 2 groups of 2 queries, a key and a value, of depth 2)
        groups = leaf.reshape(*leaf.shape[:-1], 2, 4, 2)
        heads = [groups[..., g, [h, 2, 3], :] for g in range(2) for h in range(2)]
        return jnp.stack(heads, -3).reshape(*leaf.shape[:-1], 24)

    wide = {**params, "qkv": jax.tree.map(repeated, params["qkv"])}
    found = applied(shared, params, x)
    np.testing.assert_allclose(found, applied(whole, wide, x), rtol=1e-5, atol=1e-6)


def test_padding_never_changes_what_a_text_means():
    model, given = (
        BERT(vocab_size=11, max_position_embeddings=12, num_layers=2, num_heads=2, embed_dim=16),
        tokens(1, 7),
    )
    params = made(model, given)
    alone = applied(model, params, given)
    longer = jnp.pad(given, ((0, 0), (0, 5)))
    padded = applied(model, params, longer)[:, :7]
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)
    classes = model.clone(num_classes=3)
    params = made(classes, given)
    logits = (applied(classes, params, x) for x in (given, longer))
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_padding_of_the_source_never_changes_a_translation(pre_norm):
    model = EncoderDecoder(
        vocab_size=11,
        max_position_embeddings=12,
        num_layers=2,
        num_heads=2,
        embed_dim=16,
        pre_norm=pre_norm,
    )
    source, given = tokens(2, 7), tokens(2, 6, seed=1)
    params = made(model, source, given)
    alone = applied(model, params, source, given)
    longer = jnp.pad(source, ((0, 0), (0, 3)))
    padded = applied(model, params, longer, given)
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)
    other = applied(model, params, source.at[:, 0].add(1) % 11, given)
    assert (np.abs(other - alone).max(-1) > 1e-4).all()


def test_a_cached_decoder_equals_the_uncached():
    model = EncoderDecoder(
        vocab_size=11, max_position_embeddings=12, num_layers=2, num_heads=2, embed_dim=16
    )
    source, given = tokens(2, 7).at[1, 5:].set(0), tokens(2, 6, seed=1)
    params = {"params": made(model, source, given)}
    expected = applied(model, params, source, given)
    memory = applied(model, params, source, method="encode")
    at = jnp.arange(6)[None]
    step = functools.partial(
        applied, model, memory=memory, source=source, decode=True, mutable="cache", method="decode"
    )
    cache = step(params, jnp.zeros_like(given), positions=at)[1]
    found = []
    for i in range(6):
        logits, cache = step({**params, **cache}, given[:, i : i + 1], positions=at[:, i : i + 1])
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_told_at_their_places_alone():
    model, given = (
        BERT(vocab_size=11, max_position_embeddings=12, num_layers=1, num_heads=2, embed_dim=16),
        tokens(),
    )
    params = {"params": made(model, given)}
    places = jnp.array([[3, 0], [7, 11]])
    everywhere = applied(model, params, given)
    logits = applied(model, params, given, mlm_positions=places)
    expected = jnp.take_along_axis(everywhere, places[..., None], 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    targets, weights = jnp.array([[1, 2], [3, 4]]), jnp.array([[1.0, 0.0], [0.5, 2.0]])
    losses = -jnp.take_along_axis(jax.nn.log_softmax(expected), targets[..., None], -1)[..., 0]
    total = applied(model, params, given, targets, weights, places)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-5)


def count(model, *inputs, without=()):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    kept = [leaves for name, leaves in shapes.items() if name not in without]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))


TOKENS, IMAGES = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 224, 224, 3))
HEAD = ("transform", "transform_norm", "bias", "logits")


@pytest.mark.parametrize(
    ("model", "inputs", "parameters"),
    [
        (GPT2(), (TOKENS,), 124_439_808),
        (GPT2Medium(scan=True), (TOKENS,), 354_823_168),
        pytest.param(GPT2Large(), (TOKENS,), 774_030_080, marks=pytest.mark.slow),
        pytest.param(GPT2XL(), (TOKENS,), 1_557_611_200, marks=pytest.mark.slow),
        (BERTBase(num_classes=2), (TOKENS,), 109_482_240),
        (BERTLarge(num_classes=2, scan=True), (TOKENS,), 335_141_888),
        (TransformerBase(), (TOKENS, TOKENS), 63_082_496),
        (ViTTiny16(num_classes=1000), (IMAGES,), 5_717_416),
        (ViTSmall16(num_classes=1000), (IMAGES,), 22_050_664),
        (ViTBase16(num_classes=1000), (IMAGES,), 86_567_656),
        (ViTLarge16(num_classes=1000, scan=True), (IMAGES,), 304_326_632),
    ],
)
def test_models_have_as_many_parameters_as_published(model, inputs, parameters):
    without = HEAD if isinstance(model, BERT) else ()
    assert count(model, *inputs, without=without) == parameters


def test_sequences_beyond_the_context_are_refused():
    for model, inputs in (
        (gpt(max_position_embeddings=4), (tokens(),)),
        (BERT(max_position_embeddings=4), (tokens(),)),
        (EncoderDecoder(max_position_embeddings=4), (tokens(), tokens())),
    ):
        with pytest.raises(UserError, match="12 tokens do not fit the model's context of 4"):
            jax.eval_shape(model.init, jax.random.key(0), *inputs)


def test_an_image_that_patches_do_not_divide_is_refused():
    with pytest.raises(UserError, match="30x32 pixels cannot be cut into patches of 16"):
        jax.eval_shape(ViT(patch_size=16).init, jax.random.key(0), jnp.zeros((1, 30, 32, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (gpt(num_heads=5), "a width of 16 cannot be split into 5 heads: set model.num_heads"),
        (
            gpt(num_kv_heads=3),
            "heads cannot share 3 keys and values evenly: set model.num_kv_heads",
        ),
        (
            gpt(position_embedding="rotary", embed_dim=6),
            "need an even head size, not 3",
        ),
        (
            gpt(position_embedding="sinusoidal", embed_dim=5, num_heads=1),
            "need an even width, not 5: set model.em",
        ),
        (gpt(num_heads=0), "model.num_heads must be at least 1, not 0"),
        (gpt(num_kv_heads=0), "model.num_kv_heads must be at least 1, not 0"),
        (gpt(num_layers=-1), "model.num_layers must be at least 1, not -1"),
        (gpt(mlp_dim=0), "model.mlp_dim must be at least 1, not 0"),
        (gpt(vocab_size=0), "model.vocab_size must be at least 1, not 0"),
        (BERT(type_vocab_size=0), "model.type_vocab_size must be at least 1, not 0"),
        (ViT(patch_size=0), "model.patch_size must be at least 1, not 0"),
        (EncoderDecoder(num_layers=0), "model.num_layers must be at least 1, not 0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(model, message):
    given = {ViT: (jnp.zeros((1, 8, 8, 1)),), EncoderDecoder: (tokens(), tokens())}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *given.get(type(model), (tokens(),)))
