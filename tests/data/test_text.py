"""Words and characters as token ids, and the tasks and models that use them."""

import importlib.util
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import UserError
from jdl.data import Arrays, Tokens, Words
from jdl.data.language import Windows, window_starts
from jdl.data.text import PADDING, START, UNKNOWN, build_vocabulary, encode_words, split_words
from jdl.models import GPT, RNN
from jdl.optimizers import Adam
from jdl.state import TrainState
from jdl.tasks import BinaryClassification, LanguageModeling

TEXTS = ["The cat, the dog!", "It's a cat?  A CAT.", "dog\tdog\nbird"]


def texts(*values, **more):
    return {"text": np.array(values, object), **more}


def test_words_are_lower_case_without_signs_but_with_apostrophes():
    assert split_words(TEXTS[1]) == ["it's", "a", "cat", "a", "cat"]
    assert split_words(TEXTS[2]) == ["dog", "dog", "bird"]


def test_words_are_ranked_by_frequency_and_ties_by_first_appearance():
    ids = build_vocabulary(TEXTS, 100)
    assert list(ids) == ["cat", "dog", "the", "a", "it's", "bird"]
    assert list(ids.values()) == [3, 4, 5, 6, 7, 8]
    assert list(build_vocabulary(TEXTS, 5)) == ["cat", "dog"]


def test_texts_are_padded_and_cut_at_the_front():
    ids = {"cat": 3, "dog": 4}
    np.testing.assert_array_equal(
        encode_words("cat bird dog", ids, 6), [PADDING, PADDING, START, 3, UNKNOWN, 4]
    )
    np.testing.assert_array_equal(encode_words("cat bird dog", ids, 2), [UNKNOWN, 4])


def test_the_vocabulary_comes_from_the_training_text_alone():
    arrays = {
        "train": texts("good good film", "bad film", label=np.array([1, 0])),
        "test": texts("unseen film", label=np.array([1])),
    }
    whole = {"validation_fraction": 0.0}
    splits = Words(Arrays(arrays, **whole), vocab_size=10, length=4).splits()
    assert set(splits) == {"train", "test"}
    np.testing.assert_array_equal(splits["train"][0]["tokens"], [START, 3, 3, 4])
    np.testing.assert_array_equal(splits["test"][0]["tokens"], [PADDING, START, UNKNOWN, 4])
    assert splits["train"][1]["label"] == 0


REVIEWS = [
    "This film was GREAT -- I'd watch it again & again (twice!).<br /><br />Loved it...",
    "Not great. Not bad, either; the plot's thin:\tit drags.\nThe end.",
    "the caf\xe9 scene\xa0was great, \u201cquoted\u201d lines\x85 weren't",
    "\u0130stanbul, STRASSE stra\xdfe... 10/10",
    "",
]


def with_keras(texts, known, size, length):
    """What Keras makes of texts whose words it has ranked in those that are known."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from keras.src.legacy.preprocessing.text import Tokenizer, text_to_word_sequence
    from keras.utils import pad_sequences

    tokenizer = Tokenizer()
    tokenizer.fit_on_texts(known)
    index = {word: rank + 2 for word, rank in tokenizer.word_index.items() if rank + 2 < size}
    rows = [[1, *(index.get(word, 2) for word in text_to_word_sequence(text))] for text in texts]
    return pad_sequences(rows, maxlen=length).tolist()


def vectorized(size, length):
    ids = build_vocabulary(REVIEWS[:3], size)
    return [encode_words(text, ids, length).tolist() for text in REVIEWS]


def test_texts_become_the_numbers_that_keras_makes_of_them():
    fixture = json.loads((Path(__file__).parent / "vectorized.json").read_text())
    assert [(case["size"], case["length"]) for case in fixture] == [(100, 12), (10, 30), (12, 5)]
    for case in fixture:
        assert vectorized(case["size"], case["length"]) == case["ids"]


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs Keras")
def test_the_numbers_on_file_are_keras_own():
    fixture = json.loads((Path(__file__).parent / "vectorized.json").read_text())
    for case in fixture:
        assert with_keras(REVIEWS, REVIEWS[:3], case["size"], case["length"]) == case["ids"]


@pytest.mark.parametrize("size", [2, 5, 6, 7, 11, 12, 13, 26])
def test_windows_of_their_own_length_predict_every_token_once(size):
    starts = window_starts(size, 5, 5)
    windows = Windows(np.arange(size, dtype=np.int32), np.arange(size), 5, starts)
    rows = [windows[i]["tokens"] for i in range(len(windows))]
    predicted = [token for row in rows for token in row[1:] if token >= 0]
    assert predicted == list(range(1, size))
    assert sum(windows[i]["bytes"] for i in range(len(windows))) == sum(predicted)
    for row in rows:
        kept = row[row >= 0]
        np.testing.assert_array_equal(np.diff(kept), 1)


def test_characters_join_validation_and_test():
    parts = {"train": texts("abcab" * 9), "validation": texts("bca"), "test": texts("dab")}
    splits = Tokens(Arrays(parts), length=4, stride=2).splits()
    assert set(splits) == {"train", "validation"}
    np.testing.assert_array_equal(splits["validation"][0]["tokens"], [1, 2, 0, 3, 0])
    np.testing.assert_array_equal(splits["validation"][1]["tokens"], [0, 1, -1, -1, -1])
    whole = {"test_fraction": 0.0, "validation_fraction": 0.0}
    with pytest.raises(UserError, match="no validation text"):
        Tokens(Arrays({"train": texts("abc")}, **whole)).splits()
    with pytest.raises(UserError, match="length, stride >= 1"):
        Tokens(Arrays(parts), length=0)


def state(model, task, batch):
    variables = task.init(model, jax.random.key(0), batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(1),
        params=variables["params"],
        collections={},
        opt_state=(),
    )


def language_batch(length=9, rows=3, vocabulary=7):
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1))
    tokens[-1, -3:] = -1
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.array([True, True, True])}


SMALL = {
    "vocab_size": 7,
    "max_position_embeddings": 9,
    "num_layers": 2,
    "num_heads": 2,
    "embed_dim": 8,
}


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}, {"dropout_rate": 0.0}])
def test_the_loss_is_that_of_the_logits_and_padding_never_counts(options):
    model, task, batch = GPT(**SMALL, **options), LanguageModeling(), language_batch()
    begun = state(model, task, batch)
    metrics = task.evaluate(model, begun, batch)
    probabilities = np.asarray(task.predict(model, begun, batch))
    tokens = np.asarray(batch["tokens"])[:, 1:]
    row, place = np.nonzero(tokens >= 0)
    losses = -np.log(probabilities[row, place, tokens[row, place]])
    assert metrics["loss"].count == len(losses) == 3 * 9 - 3
    assert metrics["loss"].compute() == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["perplexity"].compute() == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    masked = {**batch, "mask": jnp.array([True, True, False])}
    assert task.evaluate(model, begun, masked)["loss"].count == 18


def test_no_logit_depends_on_a_later_token():
    model, task, batch = GPT(**SMALL), LanguageModeling(), language_batch(rows=1)
    begun = state(model, task, batch)
    tokens = jnp.maximum(batch["tokens"], 0)[:, :-1]
    before = model.apply({"params": begun.params}, tokens)[0]
    for place in range(9):
        other = tokens.at[0, place].set((tokens[0, place] + 1) % 7)
        changed = np.abs(model.apply({"params": begun.params}, other)[0] - before).max(-1) > 0
        assert not changed[:place].any()
        assert changed[place:].all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_network_overfits_one_batch(cell, tmp_path):
    rng = np.random.default_rng(0)
    split = {"tokens": rng.integers(0, 20, (8, 6)), "label": np.arange(8) % 2}
    whole = {"test_fraction": 0.0, "validation_fraction": 0.0}
    experiment = jdl.Experiment(
        model=RNN(vocab_size=20, embed_dim=8, hidden_size=8, cell=cell),
        task=BinaryClassification(inputs="tokens"),
        data=Arrays({"train": split}, **whole),
        optimizer=Adam(0.03),
        steps=60,
        batch_size=8,
        hooks=(),
    )
    run = jdl.train(experiment, tmp_path / "run")
    assert run.result["metrics"]["train"]["accuracy"] == 1
    probabilities = run.predict(split["tokens"])
    assert probabilities.shape == (8,)
    np.testing.assert_array_equal(probabilities > 0.5, split["label"] == 1)


def test_texts_without_labels_are_no_examples_of_words():
    data = Words(Arrays({"train": texts("a", "b")}, test_fraction=0.0, validation_fraction=0.0))
    with pytest.raises(UserError, match="the texts of arrays have no 'label'"):
        data.splits()


def test_labels_and_tokens_that_cannot_be_are_refused():
    where, logits = "split 'train'", jax.ShapeDtypeStruct((2, 1), jnp.float32)
    task = BinaryClassification()
    batch = {"image": np.zeros((2, 3)), "label": np.array([0, 2])}
    with pytest.raises(UserError, match="'label' holds 2 at row 1"):
        task.validate_batch(batch, logits, where)
    outputs = jax.ShapeDtypeStruct((2, 3, 7), jnp.float32)
    with pytest.raises(UserError, match=r"'tokens' has token 7, .* vocabulary 0\.\.6"):
        LanguageModeling().validate_batch({"tokens": np.array([[0, 7]])}, outputs, where)
    with pytest.raises(UserError, match=r"\(batch, length\) integers"):
        LanguageModeling().validate_batch({"tokens": np.zeros((2, 3), np.float32)}, outputs, where)
