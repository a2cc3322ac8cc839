"""Language model data: windows, packed documents, separate texts, and saved tokenizers."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
from jdl import UserError
from jdl.data import BPE, Arrays, Bytes, Documents, Saved, StandardLibrary, Streams, Texts, Tokens
from jdl.data.examples import stack_examples
from jdl.data.tokenizers import BOS, EOS, PAD
from jdl.models import GPT, MLP, RecurrentLM
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.state import TrainState
from jdl.tasks import LanguageModeling

STORY = ["once upon a time, ", "there was a cat, Ŧ, and a dog; ", "the cat sat. the dog sat. "]
PARTS = {"train": STORY * 3, "validation": ["the end of the ŧale", " of two"], "test": ["!"]}
WHOLE = {"test_fraction": 0.0, "validation_fraction": 0.0}


def arrays(parts=PARTS, **options):
    found = {name: {"text": np.array(texts, object)} for name, texts in parts.items()}
    return Arrays(found, **WHOLE | options)


def every(source):
    return stack_examples([dict(source[i]) for i in range(len(source))], np.arange(len(source)))


@pytest.mark.parametrize("encoding", [Bytes(), BPE(290)], ids=["bytes", "pieces"])
def test_windows_and_streams_of_any_tokens_hold_the_whole_text_and_its_bytes(encoding):
    data = Tokens(arrays(), encoding=encoding, length=7, stride=7)
    tokenizer, splits = data.tokenizer(), data.splits()
    assert set(splits) == {"train", "validation"}
    for name, text in (
        ("train", "".join(STORY * 3)),
        ("validation", "the end of the ŧale of two!"),
    ):
        found = every(splits[name])
        predicted = found["tokens"][:, 1:]
        tokens = [int(found["tokens"][0, 0]), *predicted[predicted >= 0].tolist()]
        assert tokenizer.decode(tokens) == text
        first = len(tokenizer.decode(tokens[:1]).encode())
        assert found["bytes"].sum() == len(text.encode()) - first
    streams = Streams(arrays(), encoding=encoding, length=4, num_streams=2, validation_length=50)
    found = every(streams.splits()["train"])
    for row in range(2):
        tokens = found["tokens"][row::2, 1:].ravel().tolist()
        assert len(tokenizer.decode(tokens).encode()) == found["bytes"][row::2].sum()


def test_pieces_are_learned_from_the_training_text_alone():
    other = arrays({**PARTS, "validation": ["quite another thing " * 9], "test": ["quite"]})
    for kind in (Tokens, Documents, Texts):
        made = [kind(text, encoding=BPE(290)).tokenizer() for text in (arrays(), other)]
        assert made[0] == made[1]
    changed = Texts(arrays({**PARTS, "train": ["quite another thing"]}), encoding=BPE(290))
    assert changed.tokenizer() != made[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8), st.integers(1, 9))
def test_packed_documents_predict_every_token_once_and_none_over_a_border(texts, length):
    data = Documents(arrays({"train": texts}), encoding=BPE(260), length=length)
    source, encode = data.splits()["train"], data.tokenizer().encode
    found = every(source)
    tokens, segments = found["tokens"], found["segments"]
    assert tokens.shape == segments.shape == (len(source), length + 1)
    np.testing.assert_array_equal(tokens[1:, 0], tokens[:-1, -1])
    assert not segments[:, 0].any()
    np.testing.assert_array_equal(segments == -1, tokens == -1)
    known = (tokens[:, 1:] >= 0) & (segments[:, 1:] == segments[:, :-1])
    expected = [token for text in texts for token in (*encode(text), EOS)]
    assert tokens[:, 1:][known].tolist() == expected
    before = tokens[:, :-1][known]
    assert (before == BOS).sum() == len(texts)
    assert not (before == EOS).any()
    assert found["bytes"].sum() == sum(len(text.encode()) for text in texts)


def state(model, task, batch):
    variables = jax.jit(lambda key: task.init(model, key, batch))(jax.random.key(0))
    params = jax.tree.map(lambda x: 5 * x, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(1),
        params=params,
        collections={},
        opt_state=(),
    )


def batch_of(found):
    return {name: jnp.asarray(array) for name, array in found.items()} | {
        "mask": jnp.ones(len(found["tokens"]), bool)
    }


def small(size, **options):
    return GPT(
        **{
            "vocab_size": size,
            "max_position_embeddings": 40,
            "num_layers": 1,
            "num_heads": 2,
            "embed_dim": 8,
        }
        | options
    )


def evaluator(task, model, begun):
    return jax.jit(lambda batch: task.evaluate(model, begun, batch))


def test_packed_documents_score_as_each_alone():
    texts = ["a cat", "", "the dogs"]
    data = Documents(arrays({"train": texts}), encoding=BPE(260), length=30)
    model, task = small(260), LanguageModeling()
    packed = batch_of(every(data.splits()["train"]))
    assert packed["tokens"].shape == (1, 31)
    begun = state(model, task, packed)
    metrics = evaluator(task, model, begun)(packed)
    rows = [[BOS, *data.tokenizer().encode(text), EOS] for text in texts]
    rows = np.array([row + [-1] * (12 - len(row)) for row in rows], np.int32)
    alone = evaluator(task, model, begun)(batch_of({"tokens": rows}))
    size = sum(map(len, texts))
    assert metrics["loss"].count == alone["loss"].count == size + 3
    assert metrics["loss"].total == pytest.approx(float(alone["loss"].total), rel=1e-4)
    assert "bits_per_byte" not in alone
    bits = float(alone["loss"].total) / math.log(2) / size
    assert metrics["bits_per_byte"].compute() == pytest.approx(bits, rel=1e-4)
    predict = jax.jit(lambda batch: task.predict(model, begun, batch))
    other = packed | {"tokens": packed["tokens"].at[0, 8:15].add(1)}
    before, after = predict(packed), predict(other)
    np.testing.assert_array_equal(after[0, :8], before[0, :8])
    assert (np.abs(after - before)[0, 8:19].max(-1) > 1e-6).all()
    np.testing.assert_array_equal(after[0, 19:], before[0, 19:])


def test_bits_per_byte_are_nats_over_the_bytes_that_count():
    task, model = LanguageModeling(), small(290)
    for encoding in (Bytes(), BPE(290)):
        data = Tokens(arrays(), encoding=encoding, length=7, stride=7)
        found = every(data.splits()["validation"])
        batch = batch_of(found)
        evaluate = evaluator(task, model, state(model, task, batch))
        metrics = evaluate(batch)
        bits = float(metrics["loss"].total) / math.log(2) / found["bytes"].sum()
        assert metrics["bits_per_byte"].compute() == pytest.approx(bits, rel=1e-5)
        if encoding == Bytes():
            nats = metrics["loss"].compute()
            assert metrics["bits_per_byte"].compute() == pytest.approx(nats / math.log(2))
        fewer = evaluate(batch | {"mask": batch["mask"].at[0].set(False)})
        assert fewer["bits_per_byte"].count == found["bytes"][1:].sum()


def test_texts_begin_with_bos_are_padded_behind_and_cut_where_asked(tmp_path):
    labelled = {"text": np.array(["abc", b"defghijk"], object), "label": np.array([1, 0])}
    text = Arrays({"train": labelled}, **WHOLE)
    start = Texts(text, encoding=BPE(260), length=6)
    end = dataclasses.replace(start, truncation_side="left")
    encode = start.tokenizer().encode
    for data, cut in ((start, "defgh"), (end, "ghijk")):
        first, second = (data.splits()["train"][i] for i in range(2))
        assert first["tokens"].tolist() == [BOS, *encode("abc"), PAD, PAD]
        assert second["tokens"].tolist() == [BOS, *encode(cut)]
        assert (first["label"], second["label"]) == (1, 0)
        (tmp_path / "text.txt").write_text("defghijk")
        read = data.reader()(tmp_path / "text.txt")["tokens"]
        np.testing.assert_array_equal(read, [second["tokens"]])
    prints = [
        data.fingerprint(data.splits()["train"])["sha256"]
        for data in (start, end, dataclasses.replace(start, encoding=BPE(261)), start)
    ]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


def test_the_standard_library_is_the_same_every_time_and_split_by_its_seed():
    data = StandardLibrary()
    train, validation = (data.load()[name] for name in ("train", "validation"))
    digests = [data.fingerprint(source) for source in (train, validation)]
    again = StandardLibrary().load()
    assert [data.fingerprint(source) for source in again.values()] == digests
    other = StandardLibrary(split_seed=1).load()["validation"]
    assert data.fingerprint(other) != digests[1]
    texts = [train[i]["text"] for i in range(len(train))]
    held_out = {validation[i]["text"] for i in range(len(validation))} - {""}
    assert len(texts) > 300
    assert len(held_out) > 30
    assert not held_out & set(texts)
    assert not any("support.run_unittest" in text for text in texts)


def experiment(**changes):
    made = {
        "model": small(290),
        "task": LanguageModeling(),
        "data": Tokens(arrays(), encoding=BPE(290), length=8, stride=8),
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": (),
        "steps": 2,
        "batch_size": 4,
    }
    return jdl.Experiment(**made | changes)


def test_the_tokenizer_stays_with_its_run(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    first = jdl.train(experiment(), workdir)
    kept = first.experiment.data.tokenizer()
    saved = Saved(str(workdir)).build([])
    assert saved.encode("the cat") == kept.encode("the cat")
    fields = json.loads((workdir / "experiment.json").read_text())

    def build(self, texts):
        raise AssertionError("learned anew")

    monkeypatch.setattr(BPE, "build", build)
    run = jdl.open(workdir, experiment())
    assert run.experiment.data.tokenizer() == saved
    assert run.evaluate("validation") == first.result["metrics"]["validation"]
    finished = jdl.train(experiment(), workdir)
    assert finished.result == first.result
    longer = jdl.train(experiment(steps=3), workdir)
    assert longer.result["step"] == 3
    with pytest.raises(AssertionError, match="learned anew"):
        jdl.train(experiment(), tmp_path / "other")
    after = json.loads((workdir / "experiment.json").read_text())["fields"]
    assert after == fields["fields"] | {"steps": 3}
    # A tokenizer of more tokens than the model knows, and what is none.
    path = workdir / "tokenizer.json"
    path.write_text(json.dumps({"jdl": "characters", "characters": "".join(map(chr, range(500)))}))
    with pytest.raises(UserError, match="tokenizer of arrays has 500 tokens, the model 290"):
        jdl.open(workdir, experiment())
    path.write_text("{")
    with pytest.raises(UserError, match=r"run/tokenizer\.json cannot be read: this is not a tok"):
        jdl.open(workdir, experiment())


REFUSED = {
    "a model that reads over borders": (
        lambda: experiment(
            data=Documents(arrays(), encoding=BPE(290), length=8),
            model=RecurrentLM(vocab_size=290, hidden_size=4, num_layers=1, carry=False),
        ),
        "RecurrentLM takes no segments, .* such as GPT, or jdl.data.Tokens",
    ),
    "documents of bytes": (
        lambda: experiment(data=Documents(arrays(), encoding=Bytes(), length=8)),
        "the texts of arrays need <bos>, <eos> and <pad> tokens, .* data.encoding to bpe",
    ),
    "a small vocabulary": (
        lambda: experiment(model=small(200)),
        r"the tokenizer of arrays has \d+ tokens, the model 200: set model.vocab_size to",
    ),
    "no such run": (
        lambda: experiment(data=Tokens(arrays(), encoding=Saved("nowhere"))),
        r"nowhere has no tokenizer.json: name a run",
    ),
    "no texts": (
        lambda: experiment(data=Tokens(Arrays({name: {"image": np.ones(2)} for name in PARTS}))),
        "the examples have no 'text' to read .they have 'image'.: set data.text to a set of texts",
    ),
    "nothing written": (
        lambda: experiment(data=Tokens(arrays({"train": [""], "validation": ["ab"]}))),
        "the text of split 'train' of arrays has 0 tokens: at least 2 are needed to predict one",
    ),
    "next to nothing": (
        lambda: experiment(data=Tokens(arrays({"train": ["ab"], "validation": ["a"]}))),
        "the text of split 'validation' of arrays has 1 tokens",
    ),
    "other bytes": (
        lambda: experiment(data=Tokens(arrays({"train": [b"a\xff"], "validation": ["a"]}))),
        "a text is not UTF-8: .* can't decode byte 0xff",
    ),
    "half a character": (
        lambda: experiment(data=Tokens(arrays({"train": ["a\ud83d"], "validation": ["a"]}))),
        "a text is not UTF-8: .* can't encode character",
    ),
    "a model of something else": (
        lambda: experiment(model=MLP(), data=Tokens(arrays(), encoding=Bytes(), length=8)),
        "MLP takes no targets, .*: use one that does, such as GPT",
    ),
    "no length": (lambda: Documents(arrays(), length=0), "data.length must be at least 1, not 0"),
    "no room": (lambda: Texts(arrays(), length=1), "data.length must be at least 2, not 1"),
    "no tokens": (lambda: arrays().tokenizer(), "arrays has no tokenizer: its examples are not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        jdl.train(make(), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_command_line_chooses_an_encoding():
    made = jdl.override(experiment(), {"data.encoding": "bpe", "data.encoding.vocab_size": "270"})
    assert made.data.encoding == BPE(270)
    assert jdl.override(experiment(), {"data.encoding": "bytes"}).data.encoding == Bytes()
    saved = jdl.override(experiment(), {"data.encoding": "saved", "data.encoding.run": "runs/x"})
    assert saved.data.encoding == Saved("runs/x")
