"""Translation: loss, metrics and decoded text."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu

import jdl
from jdl.data import Arrays
from jdl.data.tokenizers import BOS, EOS, MASK, PAD
from jdl.errors import UserError
from jdl.inference.translate import translate
from jdl.models import EncoderDecoder, LSTMEncoderDecoder
from jdl.state import TrainState
from jdl.tasks import Translation
from jdl.tasks.translation import corpus_bleu
from tests.translations import LSTM, MODELS, TEXTS, experiment, made, tokens


def batch(rows=3):
    """Sources and targets of unlike length, the last row masked."""
    source, target = tokens(rows, 7), jnp.pad(tokens(rows, 6, 1), ((0, 0), (1, 1)))
    target = target.at[:, 0].set(BOS).at[:, -1].set(EOS)
    source = source.at[0, 5:].set(PAD)
    target = target.at[0, 4].set(EOS).at[0, 5:].set(PAD)
    return {"source": source, "target": target, "mask": jnp.arange(rows) < rows - 1}


def state(params):
    return TrainState(jnp.zeros((), jnp.int32), jax.random.key(1), params, {}, ())


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_scores_are_those_of_the_logits_and_padding_never_counts(name):
    model, task, given = MODELS[name].clone(dropout_rate=0.0), Translation(), batch()
    begun, targets = state(made(model)), given["target"][:, 1:]

    @jax.jit
    def everything(state):
        logits = model.apply({"params": state.params}, given["source"], given["target"][:, :-1])
        loss = task.loss(model, state.params, state, given, jax.random.key(0))
        return logits, task.evaluate(model, state, given), loss

    logits, metrics, (total, weight, _, rows) = everything(begun)
    kept = np.asarray((targets != PAD) & given["mask"][:, None])
    assert kept.sum() == 4 + 7
    plain = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)
    mean = plain[..., 0][kept].mean()
    assert metrics["loss"].count == metrics["nll"].count == metrics["accuracy"].count == 11
    assert metrics["nll"].compute() == pytest.approx(mean, rel=1e-5)
    assert metrics["perplexity"].compute() == pytest.approx(np.exp(mean), rel=1e-4)
    right = np.asarray(logits.argmax(-1) == targets)[kept].mean()
    assert metrics["accuracy"].compute() == pytest.approx(right)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 13), 0.1)
    smooth = np.asarray(optax.softmax_cross_entropy(logits, labels))[kept]
    assert weight == 11
    assert float(total) == pytest.approx(smooth.sum(), rel=1e-5)
    assert list(rows) == ["loss"]
    assert metrics["loss"].compute() == pytest.approx(smooth.mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_padding_of_the_source_changes_no_score_and_no_translation(name):
    model, task, given = MODELS[name], Translation(max_extra_tokens=3), batch()

    @jax.jit
    def both(state):
        wide = {**given, "source": jnp.pad(given["source"], ((0, 0), (0, 4)))}
        return [
            (task.evaluate(model, state, x)["loss"].total, task.predict(model, state, x))
            for x in (given, wide)
        ]

    (loss, found), (padded, longer) = both(state(made(model)))
    np.testing.assert_allclose(loss, padded, rtol=1e-4)
    assert (found.shape, longer.shape) == ((3, 10), (3, 14))
    np.testing.assert_array_equal(longer[:, :10], found)
    assert (longer[:, 10:] == EOS).all()
    assert not np.isin(found, (PAD, BOS, MASK)).any()
    assert ((found != EOS).sum(1) <= np.array([5 + 3, 7 + 3, 7 + 3])).all()


FITTING = {
    "transformer": EncoderDecoder(
        vocab_size=320,
        max_position_embeddings=80,
        num_layers=1,
        num_heads=2,
        embed_dim=32,
        dropout_rate=0.0,
    ),
    "lstm": LSTMEncoderDecoder(vocab_size=320, num_layers=1, hidden_size=48, dropout_rate=0.0),
}


@pytest.mark.parametrize("name", FITTING)
def test_one_batch_is_learned_by_heart_and_translated_back(name, tmp_path):
    run = jdl.train(experiment(FITTING[name]), tmp_path / "run")
    assert run.result["metrics"]["test"]["accuracy"] == 1
    assert run.result["metrics"]["test"]["bleu"] == pytest.approx(100)
    assert "bleu" not in run.result["metrics"]["train"]
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    signature = written["signatures"]["bleu"]
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    lines = (tmp_path / "run" / "predictions.test.txt").read_text().splitlines()
    assert lines == [target for _, target in TEXTS]
    rows = run.experiment.data.splits()["test"].arrays
    found = run.predict_rows({"source": rows["source"]})
    tokenizer = run.experiment.data.tokenizer()
    assert [tokenizer.decode(row) for row in found.tolist()] == lines
    if name == "transformer":
        with pytest.raises(UserError, match=r"text 2 has \d+ tokens, more than .* context of 80"):
            list(translate(run, ["A dog runs.", "A dog runs. " * 80]))


def test_bleu_is_that_of_sacrebleu():
    found = ["Ein Hund läuft über die Straße .", "Zwei Frauen sitzen auf einer bank.", "", "Zwei"]
    expected = [target for _, target in TEXTS]
    score, signature = corpus_bleu(found, expected)
    assert 0 < score < 100
    assert score == sacrebleu.corpus_bleu(found, [expected]).score
    assert "tok:13a" in signature
    assert f"version:{sacrebleu.__version__}" in signature


class Parrot(nn.Module):
    """Gives back the source, whatever it was taught."""

    vocab_size: int = 320

    def setup(self):
        self.unused = self.param("unused", nn.initializers.zeros, ())

    def __call__(self, source, tokens, targets=None, weights=None, smoothing=0.0, train=False):
        logits = self.decode(tokens, source, source)
        if targets is None:
            return logits
        return (weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets)).sum()

    def encode(self, source, train=False):
        return source

    def decode(self, tokens, memory, source, positions=None, decode=False):
        if decode:
            self.put_variable("cache", "nothing", jnp.zeros(len(tokens)))
        at = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        places = jnp.broadcast_to(at, tokens.shape)
        copied = jnp.take_along_axis(source, places, 1, mode="fill", fill_value=EOS)
        return 9.0 * jax.nn.one_hot(copied, self.vocab_size) + self.unused


def test_bleu_is_taken_of_whole_splits_at_any_batch_size(tmp_path):
    task = Translation(bleu=("train", "test"))
    results = []
    for size in (3, 4):
        changes = {"task": task, "steps": 1, "batch_size": size}
        run = jdl.train(experiment(Parrot(), **changes), tmp_path / str(size))
        results.append(run.result["metrics"])
        assert run.evaluate("test") == run.result["metrics"]["test"]
    expected = sacrebleu.corpus_bleu([s for s, _ in TEXTS], [[t for _, t in TEXTS]]).score
    for metrics in results:
        assert metrics["test"]["bleu"] == metrics["train"]["bleu"] == pytest.approx(expected)
    lines = (tmp_path / "3" / "predictions.train.txt").read_text().splitlines()
    assert lines == [source for source, _ in TEXTS]


def test_data_without_a_tokenizer_is_scored_without_bleu(tmp_path):
    arrays = {name: np.asarray(batch()[name]) for name in ("source", "target")}
    data = Arrays({"train": arrays, "test": arrays}, validation_fraction=0.0)
    run = jdl.train(experiment(LSTM, data=data, steps=1, batch_size=3), tmp_path / "run")
    assert set(run.result["metrics"]["test"]) == {"loss", "nll", "perplexity", "accuracy"}
    assert "signatures" not in run.result


def test_what_cannot_be_is_refused_in_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"label_smoothing is a share in \[0, 1\), not 1.0"):
        Translation(label_smoothing=1.0)
    for alpha in (math.nan, math.inf):
        with pytest.raises(UserError, match=f"task.alpha must be at least 0, not {alpha}"):
            Translation(alpha=alpha)
    with pytest.raises(UserError, match="max_extra_tokens must be at least 0"):
        Translation(max_extra_tokens=-1)
    shape, good = jax.ShapeDtypeStruct((2, 3), jnp.int32), np.ones((2, 3), np.int32)
    for source, message in (
        (good.astype(np.float32), "'source' has shape .* sequences of integers"),
        (good[:, 0], "'source' has shape .* sequences of integers"),
        (good * [[1], [0]], "'source' has no tokens at row 1"),
    ):
        with pytest.raises(UserError, match=message):
            Translation().validate_batch({"source": source, "target": good}, shape, "split 'train'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package sacrebleu: pip install .*\[text\]"):
        jdl.train(experiment(LSTM.clone(vocab_size=320)), tmp_path / "run")
