"""Translation: loss, metrics and decoded text."""

import io
import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu

import jdl
from benchmarks.results import row
from jdl import ops
from jdl.config.experiment_file import expectation
from jdl.data import Arrays, Pairs
from jdl.data.tokenizers import BOS, BPE, EOS, MASK, PAD
from jdl.decoding import greedy
from jdl.decoding.translation import decoder
from jdl.errors import UserError
from jdl.inference.translate import check_translation_run, translate
from jdl.models import EncoderDecoder, LSTMEncoderDecoder
from jdl.ops import cross_entropy
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.state import TrainState
from jdl.tasks import LanguageModeling, Translation
from jdl.tasks.translation import corpus_bleu

TRANSFORMER = EncoderDecoder(
    vocab_size=13, max_position_embeddings=40, num_layers=2, num_heads=2, embed_dim=16
)
LSTM = LSTMEncoderDecoder(vocab_size=13, num_layers=2, hidden_size=16)
MODELS = {"transformer": TRANSFORMER, "lstm": LSTM, "scanned": TRANSFORMER.clone(scan=True)}


def tokens(rows=2, time=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(4, 13, (rows, time)), jnp.int32)


def made(model):
    """Parameters drawn wide, so that nothing is hidden by small initial kernels."""

    def draw():
        params = model.init(jax.random.key(0), tokens(1, 2), tokens(1, 2))["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.map(jnp.add, params, tree.unflatten(drawn))

    return jax.jit(draw)()


def batch(rows=3):
    """Sources and targets of unlike length, the last row masked."""
    source, target = tokens(rows, 7), jnp.pad(tokens(rows, 6, 1), ((0, 0), (1, 1)))
    target = target.at[:, 0].set(BOS).at[:, -1].set(EOS)
    source = source.at[0, 5:].set(PAD)
    target = target.at[0, 4].set(EOS).at[0, 5:].set(PAD)
    return {"source": source, "target": target, "mask": jnp.arange(rows) < rows - 1}


def state(params):
    return TrainState(jnp.zeros((), jnp.int32), jax.random.key(1), params, {}, ())


@pytest.mark.parametrize("limit", [1 << 24, 64])
@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothed_cross_entropy_and_its_gradients_equal_optax(smoothing, limit, monkeypatch):
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", limit)
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((13, 4), (11, 4))]
    targets = jnp.asarray(rng.integers(0, 11, 13), jnp.int32)
    weights = jnp.asarray(rng.random(13) * (rng.random(13) < 0.7), jnp.float32)

    def ours(hidden, kernel):
        return ops.linear_cross_entropy(hidden, kernel, targets, weights, smoothing=smoothing)

    def plain(hidden, kernel):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, 11), smoothing)
        return (weights * optax.softmax_cross_entropy(hidden @ kernel.T, labels)).sum()

    found, expected = (jax.value_and_grad(f, (0, 1))(*given) for f in (ours, plain))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


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


TEXTS = [
    ("A dog runs.", "Ein Hund läuft über die Straße."),
    ("Two men sit on a bench.", "Zwei Männer sitzen auf einer Bank."),
    ("A man sits.", "Ein Mann sitzt auf einer Bank, die grün ist."),
    ("Two dogs run.", "Zwei Hunde laufen am Strand entlang."),
]


def pairs():
    sides = {name: np.array([t[i] for t in TEXTS], object) for i, name in enumerate(("en", "de"))}
    return Pairs(
        Arrays({"train": sides, "test": sides}, validation_fraction=0.0),
        encoding=BPE(vocab_size=320), max_source_length=24, max_target_length=48,
    )  # fmt: skip


def experiment(model, **changes):
    settings = {
        "task": Translation(), "data": pairs(), "optimizer": Adam(1e-2), "steps": 150,
        "batch_size": 4, "hooks": (), "strategy": Single(),
    }  # fmt: skip
    return jdl.Experiment(model=model, **settings | changes)


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


FILE = '''"""Translates a little.

Expect: test bleu 33.5 (2 seeds, min 33.1), 900 s, 2 CPU cores
"""

from jdl import Experiment
from jdl.data import Pairs, PairTable
from jdl.data.tokenizers import BPE
from jdl.models import LSTMEncoderDecoder
from jdl.tasks import Translation

table = PairTable("pairs.tsv", validation_fraction=0.0, test_fraction=0.25)
experiment = Experiment(
    model=LSTMEncoderDecoder(vocab_size=300, num_layers=1, hidden_size=8),
    task=Translation(max_extra_tokens=3),
    data=Pairs(table, encoding=BPE(vocab_size=300), max_source_length=40, max_target_length=60),
    steps=2, batch_size=2, hooks=(),
)
'''


def test_texts_and_lines_are_translated_by_a_command(command, tmp_path, monkeypatch):
    table = "".join("\t".join(pair) + "\n" for pair in [("en", "de"), *TEXTS])
    (tmp_path / "pairs.tsv").write_text(table)
    (tmp_path / "little.py").write_text(FILE)
    code, out, _ = command("train", "little.py", "--workdir", "run")
    assert code == 0
    assert "bleu       nrefs:1|case:mixed" in out
    code, out, err = command("evaluate", "run")
    scores = json.loads(out)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (code, err) == (0, "")
    assert scores.pop("signatures") == written["signatures"]
    assert scores == {"split": "test", **written["metrics"]["test"]}

    code, out, err = command("translate", "run", "--text", "A dog runs.", "Two men\n sit.")
    assert (code, err) == (0, "")
    first, second, rest = out.split("\n")
    assert rest == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("Two men\nA dog runs.\n" * 3))
    lines = command("translate", "run")[1].split("\n")
    assert lines == [lines[0], first] * 3 + [""]
    assert second != ""
    for text, complaint in (
        ((" ",), "text 1 is empty: there is nothing to translate"),
        (("A dog.", ""), "text 2 is empty"),
        (("A dog.", "a \udcff"), "a text is not UTF-8: "),
    ):
        code, _, err = command("translate", "run", "--text", *text)
        assert code == 2
        assert err.startswith(f"jdl: {complaint}")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert command("translate", "run")[2].startswith("jdl: there is no text")


def test_a_run_of_another_task_does_not_translate():
    data = Arrays({"train": {"tokens": np.zeros((2, 3), int)}})
    other = experiment(LSTM, task=LanguageModeling(), data=data)
    with pytest.raises(UserError, match="runs/x holds a run of LanguageModeling on Arrays: only"):
        check_translation_run(Path("runs/x"), other)


def test_more_bleu_is_better_in_the_table_of_results(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "little.py"
    path.write_text(FILE)
    monkeypatch.chdir(tmp_path)
    promise = expectation(path)
    assert promise is not None
    assert (promise.metric, promise.mean, promise.least) == ("test bleu", 33.5, 33.1)
    for seed, bleu in enumerate((33.1, 33.9)):
        folder = tmp_path / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        result = {"experiment": "little", "metrics": {"test": {"bleu": bleu}}, "seconds": 900}
        data = {"train": {"source": "pairs.tsv", "count": 3}}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "environment.json").write_text(json.dumps({"data": data}))
    assert row(tmp_path / "runs").split(" | ")[2:5] == ["test bleu", "33.5000", "33.1000"]
