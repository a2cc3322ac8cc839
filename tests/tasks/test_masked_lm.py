"""Masked language modeling: mask selection, training, and fine-tuning as a classifier."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import UserError
from jdl.data import BPE, Arrays, MaskTokens, Saved, Texts
from jdl.data.tokenizers import BOS, MASK, PAD
from jdl.models import BERT, GPT
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.pretrained import InitFrom
from jdl.state import TrainState
from jdl.tasks import BinaryClassification, MaskedLanguageModeling

LENGTH, SIZE = 24, 60


def rows(count, longest=LENGTH - 1, shortest=1, seed=0):
    """Texts of unlike lengths, begun by <bos> and padded behind."""
    rng = np.random.default_rng(seed)
    found = np.full((count, LENGTH), PAD, np.int32)
    found[:, 0] = BOS
    for row, length in zip(found, rng.integers(shortest, longest + 1, count), strict=True):
        row[1 : length + 1] = rng.integers(4, SIZE, length)
    return found


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def hidden(tokens, key=None, mlm_probability=0.15):
    found = jax.jit(MaskTokens(vocab_size=SIZE, mlm_probability=mlm_probability))(
        {"tokens": jnp.asarray(tokens)}, key
    )
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_what_is_hidden_can_be_put_back_and_is_as_much_as_asked_for(share):
    tokens = rows(300)
    found = hidden(tokens, keys(300), share)
    count = math.ceil(share * LENGTH)
    assert (
        found["mlm_positions"].shape
        == found["targets"].shape
        == found["weights"].shape
        == (300, count)
    )
    maskable = (tokens >= 4).sum(1)
    wanted = np.minimum(np.maximum(np.round(np.float32(share) * maskable), 1), count)
    np.testing.assert_array_equal(found["weights"].sum(1), wanted)
    assert set(np.unique(found["weights"])) <= {0, 1}
    for before, after, places, targets, weights in zip(
        tokens,
        *(found[name] for name in ("tokens", "mlm_positions", "targets", "weights")),
        strict=True,
    ):
        assert len(set(places)) == count
        np.testing.assert_array_equal(before[places], targets)
        chosen = places[weights > 0]
        assert (before[chosen] >= 4).all()
        others = np.setdiff1d(np.arange(LENGTH), chosen)
        np.testing.assert_array_equal(after[others], before[others])


def test_eighty_ten_ten():
    tokens = rows(4000, shortest=LENGTH - 1)
    found = hidden(tokens, keys(4000))
    chosen = found["weights"] > 0
    shown = np.take_along_axis(found["tokens"], found["mlm_positions"], 1)[chosen]
    was = found["targets"][chosen]
    assert len(shown) == 4000 * 3
    other = shown[(shown != MASK) & (shown != was)]
    assert (shown == MASK).mean() == pytest.approx(0.8, abs=0.015)
    assert (shown == was).mean() == pytest.approx(0.1 + 0.1 / (SIZE - 4), abs=0.01)
    assert other.min() >= 4
    assert other.max() < SIZE
    places = np.bincount(found["mlm_positions"][chosen], minlength=LENGTH) / 12_000
    assert places[0] == 0
    np.testing.assert_allclose(places[1:], 1 / 23, atol=0.01)


def test_a_text_of_nothing_hides_nothing():
    found = hidden(np.array([[BOS] + [PAD] * (LENGTH - 1)], np.int32), keys(1))
    assert not found["weights"].any()
    assert found["tokens"][0, 0] == BOS
    assert not found["tokens"][0, 1:].any()


def test_outside_training_a_text_is_hidden_alike_wherever_it_stands():
    tokens = rows(40, shortest=10)
    whole = hidden(tokens)
    order = np.random.default_rng(1).permutation(40)[:13]
    part = hidden(tokens[order])
    for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[order])
    changed = tokens.copy()
    changed[:, 1] = 4 + (changed[:, 1] - 3) % (SIZE - 4)
    assert (hidden(changed)["mlm_positions"] != whole["mlm_positions"]).any(1).mean() > 0.9
    assert (
        hidden(tokens, keys(40))["mlm_positions"] != hidden(tokens, keys(40, 1))["mlm_positions"]
    ).any()


def tiny(**options):
    return BERT(
        **{
            "vocab_size": SIZE,
            "max_position_embeddings": LENGTH,
            "num_layers": 1,
            "num_heads": 2,
            "embed_dim": 16,
        }
        | options
    )


def begun(model, task, batch):
    variables = jax.jit(lambda key: task.init(model, key, batch))(jax.random.key(0))
    params = jax.tree.map(lambda x: 5 * x, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(1),
        params=params,
        collections={},
        opt_state=(),
    )


def test_the_loss_is_that_of_the_hidden_tokens_alone():
    model, task = tiny(dropout_rate=0.0), MaskedLanguageModeling()
    mask = np.array([True] * 5 + [False])
    batch = {**hidden(rows(6)), "mask": mask}
    state = begun(model, task, jax.tree.map(jnp.asarray, batch))
    chances = np.asarray(jax.jit(lambda b: task.predict(model, state, b))(batch))
    chosen = (batch["weights"] > 0) & mask[:, None]
    losses = -np.log(np.take_along_axis(chances, batch["targets"][..., None], 2)[..., 0])[chosen]
    metrics = jax.jit(lambda b: task.evaluate(model, state, b))(batch)
    assert metrics["loss"].count == chosen.sum() > 5
    assert metrics["loss"].compute() == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["perplexity"].compute() == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    right = (chances.argmax(-1) == batch["targets"])[chosen].mean()
    assert metrics["accuracy"].compute() == pytest.approx(right)
    key = jax.random.key(0)
    total, weight, _, _ = jax.jit(lambda b: task.loss(model, state.params, state, b, key))(batch)
    assert weight == chosen.sum()
    assert total == pytest.approx(losses.sum(), rel=1e-4)


TEXTS = {
    "text": np.array(["one two three four five six seven eight nine ten"] * 16, object),
    "label": np.arange(16) % 2,
}
WHOLE = {"test_fraction": 0.0, "validation_fraction": 0.0}


def experiment(**changes):
    settings = {
        "model": tiny(vocab_size=300, num_layers=2, dropout_rate=0.0),
        "task": MaskedLanguageModeling(),
        "data": Texts(
            Arrays({"train": TEXTS}, **WHOLE),
            encoding=BPE(300),
            length=LENGTH,
            device_transforms=(MaskTokens(vocab_size=300),),
        ),
        "optimizer": Adam(0.01),
        "strategy": Single(),
        "hooks": (),
        "steps": 60,
        "batch_size": 16,
    }
    return jdl.Experiment(**settings | changes)


def test_hidden_tokens_are_learned_and_the_model_then_judges(tmp_path):
    first = jdl.train(experiment(), tmp_path / "mlm")
    assert first.result["metrics"]["train"]["accuracy"] > 0.9
    assert first.result["metrics"]["train"]["perplexity"] < 2
    labelled = Arrays({"train": TEXTS}, **WHOLE)
    second = experiment(
        model=tiny(vocab_size=300, num_layers=2, dropout_rate=0.0, num_classes=1),
        task=BinaryClassification(inputs="tokens"),
        data=Texts(labelled, encoding=Saved(str(tmp_path / "mlm")), length=LENGTH),
        init_from=InitFrom(run=str(tmp_path / "mlm"), skip=("pooler", "logits")),
        steps=1,
        optimizer=Adam(1e-9),
    )
    run = jdl.train(second, tmp_path / "judge")
    for name in ("tokens", "positions", "block_0", "block_1"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            run.state.params[name],
            first.state.params[name],
        )
    saved = [(tmp_path / name / "tokenizer.json").read_text() for name in ("mlm", "judge")]
    assert saved[0] == saved[1]


REFUSED = {
    "nothing hidden": (
        {"data": Texts(Arrays({"train": TEXTS}, **WHOLE), encoding=BPE(300), length=LENGTH)},
        r"needs hidden tokens: add jdl\.data\.MaskTokens\(\) to data\.device_transforms",
    ),
    "a model that reads one way": (
        {
            "model": GPT(
                vocab_size=300,
                max_position_embeddings=LENGTH,
                num_layers=1,
                num_heads=1,
                embed_dim=4,
            )
        },
        "GPT takes no places of hidden tokens: use a model that does, such as BERT",
    ),
    "other tokens than the model's": (
        {"data": replace(experiment().data, device_transforms=(MaskTokens(vocab_size=8192),))},
        r"data\.device_transforms\.0\.vocab_size is 8192, but model\.vocab_size is 300",
    ),
    "a model with too few tokens": (
        {"model": tiny(vocab_size=100)},
        r"the tokenizer of arrays has \d+ tokens, the model 100: set model.vocab_size to",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(case, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        jdl.train(experiment(**changes), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_shares_and_vocabularies_that_cannot_be():
    with pytest.raises(UserError, match=r"MaskTokens\.mlm_probability must be in \(0, 1\], not 0"):
        MaskTokens(mlm_probability=0.0)
    with pytest.raises(UserError, match=r"MaskTokens\.vocab_size must exceed"):
        MaskTokens(vocab_size=4)
