"""Baselines equal scikit-learn's, computed directly."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jdl
from jdl.data import Arrays, Digits, Mixture, Selection, Series, Stream, Tokens, Words
from jdl.models import GPT, MLP, RNN
from jdl.report import baselines
from jdl.report.baselines import Baseline
from jdl.report.run_baselines import averaged, baselines_of, held_out, sample
from jdl.tasks import (
    BinaryClassification,
    Classification,
    Forecast,
    LanguageModeling,
    Regression,
)
from jdl.trainer.training_run import TrainingRun

RANDOM = np.random.default_rng(0)


def stack(source):
    return {name: np.stack([source[i][name] for i in range(len(source))]) for name in source[0]}


@pytest.fixture(scope="module")
def digits():
    return {name: stack(source) for name, source in Digits().splits().items()}


def linear(x, y, others, labels):
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    flat, rest = (a.reshape(len(a), -1).astype(np.float32) for a in (x, others))
    return model.fit(flat, y).score(rest, labels)


def opened(task, data, model, tmp_path, ended=True):
    """A run that has not been trained; it counts as ended where it has a result."""
    experiment = jdl.Experiment(model=model, task=task, data=data, steps=1, batch_size=4)
    run = TrainingRun(experiment, "run", tmp_path)
    run.result = {"metrics": {name: {} for name in run.data.names}} if ended else {}
    return run


def test_the_most_frequent_label():
    for labels in (RANDOM.integers(0, 4, 50), np.array([2, 2, 1, 1, 0])):
        test = RANDOM.integers(0, 4, 30)
        guess = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(labels), 1)), labels)
        expected = guess.score(np.zeros((len(test), 1)), test)
        assert baselines.majority(labels, test) == pytest.approx(expected)


def test_logistic_regression_of_images(digits, monkeypatch):
    train, test = digits["train"], digits["test"]
    parts = (train["image"], train["label"], test["image"], test["label"])
    found = baselines.logistic_regression(*parts)
    assert found == pytest.approx(linear(*parts))
    assert found > 0.9
    monkeypatch.setattr(baselines, "FITTED", 100)
    kept = np.floor(np.arange(100) * len(train["label"]) / 100).astype(int)
    expected = linear(train["image"][kept], train["label"][kept], *parts[2:])
    assert baselines.logistic_regression(*parts) == pytest.approx(expected)


def test_one_class_alone_is_all_that_there_is_to_say():
    x, labels = RANDOM.normal(size=(6, 3)), np.array([1, 1, 1, 0, 1, 1])
    assert baselines.logistic_regression(x, np.ones(6, int), x, labels) == pytest.approx(5 / 6)


TEXTS = ["good film good", "a bad film", "so bad", "good and fine", "fine film", "bad bad plot"] * 4
LABELS = np.array([1, 0, 0, 1, 1, 0] * 4)


def test_which_words_occur():
    words = Words(Arrays({"train": {"text": np.array(TEXTS, object), "label": LABELS}}), length=6)
    parts = {name: stack(source) for name, source in words.splits().items()}
    known = words.vocabulary_words()
    vectorizer = CountVectorizer(binary=True, vocabulary=known[2:], token_pattern=r"\S+")

    def features(tokens):
        notes = [" ".join(known[token] for token in text if token > 1) for text in tokens]
        return vectorizer.transform(notes)

    train, test = parts["train"], parts["test"]
    model = LogisticRegression(max_iter=200).fit(features(train["tokens"]), train["label"])
    expected = model.score(features(test["tokens"]), test["label"])
    found = baselines.bag_of_words(train["tokens"], train["label"], test["tokens"], test["label"])
    assert found == pytest.approx(expected)


def test_a_word_counts_once_however_often_it_occurs():
    # The counts alone would tell these classes apart.
    once, often = np.array([1, 3, 4, 0, 0]), np.array([1, 3, 3, 3, 4])
    train, labels = np.stack([once, often] * 10), np.array([0, 1] * 10)
    assert baselines.bag_of_words(train, labels, train, labels) == 0.5


def test_the_frequency_of_each_token():
    train = np.array([[0, 1, 1, 2], [1, 1, -1, -1]])
    test = np.array([[2, 1, 0, -1], [0, 3, -1, -1]])
    chances = {0: 2 / 10, 1: 5 / 10, 2: 2 / 10, 3: 1 / 10}
    expected = np.prod([chances[1], chances[0], chances[3]]) ** (-1 / 3)
    assert baselines.frequencies(train, test) == pytest.approx(expected)


def test_a_forecast_of_one_column_from_two(tmp_path):
    values = RANDOM.normal(size=(60, 2)).cumsum(0)
    path = tmp_path / "two.csv"
    path.write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in values))
    series = Series(str(path), targets=("b",), length=2, validation_fraction=0.0)
    test = len(series.splits()["test"])
    ends = np.arange(60 - test, 60)
    steps = values[ends, 1] - values[ends - 1, 1]
    assert baselines.persistence(series) == pytest.approx(np.sqrt(np.mean(steps**2)))

    def lags(ends):
        return np.stack([values[end - 5 : end].ravel() for end in ends])

    known = np.arange(5, 60 - test)
    model = LinearRegression().fit(lags(known), values[known, 1])
    for split, places in (("test", ends), ("train", known)):
        errors = model.predict(lags(places)) - values[places, 1]
        expected = np.sqrt(np.mean(errors**2))
        assert baselines.autoregression(series, 5, split) == pytest.approx(expected)


def test_large_images_are_averaged():
    images = RANDOM.integers(0, 256, (2, 152, 150, 3), dtype=np.uint8)
    found = averaged(images)
    assert found.shape == (2, 30, 30, 3)
    for image, small in zip(images, found, strict=True):
        for channel in range(3):
            picture = Image.fromarray(image[:150, :, channel].astype(np.float32))
            expected = np.asarray(picture.resize((30, 30), Image.Resampling.BOX))
            np.testing.assert_allclose(small[..., channel], expected, rtol=1e-4)
    small = images[:, :28, :28]
    assert averaged(small) is small


@pytest.mark.parametrize(("count", "limit"), [(7, 10), (10, 10), (11, 10), (100, 7)])
def test_examples_are_taken_evenly(count, limit):
    found = baselines.evenly(count, limit)
    assert len(found) == min(count, limit)
    assert found[0] == 0
    assert found[-1] < count
    assert set(np.diff(found)) <= {count // len(found), count // len(found) + 1}


def test_a_sample_says_what_it_left_out(tmp_path):
    run = opened(jdl.Experiment.task, Digits(), MLP(), tmp_path)
    images, labels, notes = sample(run, "train", 100)
    arrays = run.data.pipeline("train").arrays
    np.testing.assert_array_equal(images, arrays["image"][baselines.evenly(1294, 100)])
    assert len(labels) == 100
    assert notes == ["100 of 1,294 train examples"]
    assert sample(run, "test", 1000)[2] == []


def test_images_are_judged_by_labels_and_a_linear_model(digits, tmp_path):
    run = opened(jdl.Experiment.task, Digits(), MLP(), tmp_path)
    plain, model = baselines_of(run)
    train, test = digits["train"], digits["test"]
    assert plain.value == baselines.majority(train["label"], test["label"])
    expected = linear(train["image"], train["label"], test["image"], test["label"])
    assert (model.name, model.metric) == ("logistic regression", "accuracy")
    assert model.value == pytest.approx(expected)
    run.result = {}
    assert held_out(run) == "validation", "the test split waits for the end"
    assert baselines_of(run)[0].value == baselines.majority(
        train["label"], digits["validation"]["label"]
    )


def test_rows_without_labels_are_no_examples_of_baselines(digits, tmp_path):
    few = Selection(Digits(), classes=tuple(range(10)), num_examples=50)
    streams = Stream("labeled", few), Stream("unlabeled", Digits(), names=("image",))
    run = opened(Classification(labeled="labeled"), Mixture(streams), MLP(), tmp_path)
    plain, model = baselines_of(run)
    known, test = stack(few.splits()["train"]), digits["test"]
    assert plain.value == baselines.majority(known["label"], test["label"])
    expected = linear(known["image"], known["label"], test["image"], test["label"])
    assert model.value == pytest.approx(expected)
    none = opened(Classification(labeled="unlabeled"), Mixture(streams), MLP(), tmp_path)
    assert baselines_of(none) == (), "no test example has a label"


def test_texts_are_judged_by_their_words(tmp_path):
    words = Words(Arrays({"train": {"text": np.array(TEXTS, object), "label": LABELS}}), length=6)
    task = BinaryClassification(inputs="tokens")
    run = opened(task, words, RNN(vocab_size=20, embed_dim=2, hidden_size=2), tmp_path)
    parts = {name: stack(source) for name, source in words.splits().items()}
    train, test = parts["train"], parts["test"]
    expected = baselines.bag_of_words(
        train["tokens"], train["label"], test["tokens"], test["label"]
    )
    plain, model = baselines_of(run)
    assert plain.name == "most frequent label"
    assert "words" in model.name
    assert model.value == expected


def test_forecasts_are_judged_by_the_last_value_and_by_least_squares(tmp_path):
    path = tmp_path / "wave.csv"
    path.write_text("level\n" + "\n".join(map(str, RANDOM.normal(size=200).cumsum())))
    series = Series(str(path), length=3)
    run = opened(Forecast(), series, RNN(vocab_size=0, hidden_size=2), tmp_path)
    last, fitted = baselines_of(run)
    assert last.value == baselines.persistence(series)
    assert fitted.value == baselines.autoregression(series, 20)
    assert "AR(20)" in fitted.name
    short = dataclasses.replace(series, test_fraction=0.7)
    assert len(baselines_of(opened(Forecast(), short, run.experiment.model, tmp_path))) == 1


def test_numbers_are_judged_by_their_mean(tmp_path):
    split = {"image": RANDOM.normal(size=(40, 3)), "label": RANDOM.normal(size=(40, 2))}
    run = opened(Regression(), Arrays({"train": split}), MLP(features=2), tmp_path)
    train, test = (run.data.pipeline(name).arrays for name in ("train", "test"))
    guess = DummyRegressor().fit(train["image"], train["label"]).predict(test["image"])
    (found,) = baselines_of(run)
    assert found.metric == "rmse"
    expected = np.sqrt(np.mean((guess - test["label"]) ** 2))
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.beaten_by(0.9 * found.value)
    assert not found.beaten_by(0.9 * found.value, 0.2 * found.value)
    assert not found.beaten_by(1.1 * found.value)


def test_texts_by_characters_are_judged_by_their_frequencies(tmp_path):
    parts = {"train": {"text": ["abcab" * 9]}, "validation": {"text": ["bcad"]}}
    data = Tokens(Arrays(parts), length=4, stride=2)
    model = GPT(vocab_size=4, max_position_embeddings=4, num_layers=1, num_heads=1, embed_dim=4)
    run = opened(LanguageModeling(), data, model, tmp_path)
    splits = {name: stack(source)["tokens"] for name, source in data.splits().items()}
    (found,) = baselines_of(run)
    assert found.metric == "perplexity"
    assert found.value == baselines.frequencies(splits["train"], splits["validation"])


def test_a_higher_accuracy_is_better():
    floor = Baseline("most frequent label", "accuracy", 0.5)
    assert floor.beaten_by(0.51)
    assert not floor.beaten_by(0.51, 0.02)
    assert not floor.beaten_by(0.5)
