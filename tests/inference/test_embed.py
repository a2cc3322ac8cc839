"""Embeddings of runs and pretrained encoders, search, and recall@k."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.cli.main import main
from jdl.data import Arrays
from jdl.inference.embed import (
    embed_files,
    embed_text,
    encoder_embed,
    load_encoder,
    nearest_rows,
    normalized,
    recall_at_k,
    run_embed,
)
from jdl.models import BERT, MLP
from jdl.optimizers import Adam
from jdl.pretrained import save
from tests.saved_models import made
from tests.wordpiece import PIECES, wordpiece

MODEL = BERT(
    vocab_size=len(PIECES), max_position_embeddings=40, num_layers=1, num_heads=2, embed_dim=8,
    num_classes=0,
)  # fmt: skip
TEXTS = ["the cat", "cats, cats!", "un##affable " * 30, "the"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("encoder")
    save(MODEL, made(MODEL, jnp.ones((1, 4), jnp.int32)), found)
    (found / "tokenizer.json").write_text(wordpiece())
    (found / "1_Pooling").mkdir()
    (found / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (found / "sentence_bert_config.json").write_text('{"max_seq_length": 36}')
    (found / "texts.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in TEXTS))
    return found


def test_a_text_is_the_mean_over_its_tokens_whatever_it_is_encoded_with(directory):
    encoder = load_encoder(directory)
    found = encoder(TEXTS)
    assert (found.shape, encoder.length) == ((4, 8), 36)
    for text, vector in zip(TEXTS, found, strict=True):
        tokens = [2, *encoder.tokenizer.encode(text)[:34], 3]
        alone = encoder.model.apply({"params": encoder.params}, jnp.array([tokens]))
        np.testing.assert_allclose(vector, alone[0], atol=1e-5)


def test_the_command_prints_writes_and_searches(directory, tmp_path, capsys):
    file, output = str(directory / "texts.csv"), tmp_path / "out.npz"
    assert main(["embed", str(directory), file, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 4 vectors of 8\n"
    with np.load(output) as saved:
        vectors = saved["embedding"]
        assert saved["rows"].tolist() == [1, 2, 3, 4]
        assert saved["files"].tolist() == [file] * 4
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert main(["embed", str(directory), file]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([line["embedding"] for line in lines], vectors, atol=1e-5)
    assert main(["embed", str(directory), file, "--query", "cats, cats!", "--top", "2"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["row"], round(first["similarity"], 4)) == (2, 1.0)
    assert second["similarity"] < first["similarity"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    data = {"image": rng.normal(size=(32, 5)).astype(np.float32), "label": np.arange(32) % 3}
    experiment = jdl.Experiment(
        model=MLP(widths=(7, 6), features=3),
        data=Arrays({"train": data}, validation_fraction=0, test_fraction=0),
        optimizer=Adam(1e-2),
        hooks=(),
        steps=2,
        batch_size=8,
    )
    return jdl.train(experiment, tmp_path_factory.mktemp("run") / "run"), data["image"]


def test_a_run_embeds_by_what_its_last_layer_reads(run, monkeypatch):
    trained, x = run
    monkeypatch.setattr(Arrays, "reader", lambda self: lambda path: {"image": x[:11]})
    rows, found = embed_files(run_embed(trained), [Path("x")])
    expected = jax.nn.softmax(
        found_before(run_embed(trained)) @ trained.params["logits"]["kernel"]
        + trained.params["logits"]["bias"]
    )
    np.testing.assert_allclose(expected, trained.predict(x[:11]), atol=1e-5)
    assert found.shape == (11, 6)
    assert len(rows) == 11
    inner = run_embed(trained, "Dense_1")(Path("x"))[1]
    assert inner.shape == (11, 7)
    with pytest.raises(jdl.UserError, match=r"no layer 'Dense_7' .it has .*; did you mean 'Dense_"):
        run_embed(trained, "Dense_7")(Path("x"))


def found_before(embed):
    return embed(Path("x"))[1]


def test_recall_counts_what_is_nearer_than_the_target():
    items = np.eye(4)
    queries = np.array([[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0, 0, 0.1, 1], [0, 0, 1, 1]])
    targets = np.array([0, 1, 3, 2])
    assert recall_at_k(queries, items, targets, 1) == 0.5
    assert recall_at_k(queries, items, targets, 2) == 1.0
    assert recall_at_k(np.ones((4, 4)), np.ones((4, 4)), targets, 1) == 0
    assert [row for row, _ in nearest_rows(normalized(queries)[0], items, 2)] == [0, 1]
    for wrong in ({"k": 0}, {"targets": np.array([0, 1, 2, 4])}):
        with pytest.raises(jdl.UserError):
            recall_at_k(queries, items, **{"targets": targets, **wrong})


def test_what_cannot_be_embedded_is_refused_in_a_sentence(directory, tmp_path, capsys):
    def refused(*words):
        assert main(["embed", *map(str, words)]) != 0
        return capsys.readouterr().err

    file = directory / "texts.csv"
    assert "needs at least one FILE" in refused(directory)
    assert "--top must be at least 1" in refused(directory, file, "--top", 0)
    assert "must end in .npz" in refused(directory, file, "--output", "x.txt")
    assert "are for runs" in refused(directory, file, "--layer", "logits")
    assert "the query is empty" in refused(directory, file, "--query", " ")
    (tmp_path / "empty.csv").write_text("text\n")
    assert "empty.csv" in refused(directory, tmp_path / "empty.csv")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (other / name).write_bytes((directory / name).read_bytes())
    (other / "1_Pooling").mkdir()
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert "pools by pooling_mode_cls_token, where encoders of jdl take" in refused(other, file)
    (other / "tokenizer.json").unlink()
    assert "tokenizer.json cannot be read" in refused(other, file)
    assert embed_text(encoder_embed(load_encoder(directory)), "the cat").shape == (8,)
