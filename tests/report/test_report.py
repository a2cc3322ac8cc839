"""A run's report: true statements, escaped values, a self-contained page."""

import html.parser
import importlib.util
import json
import shlex
import shutil

import flax.linen as nn
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

import jdl
from jdl.cli.arguments import overrides, split
from jdl.config.overrides import as_flags
from jdl.data import Arrays, Words
from jdl.data.text import START, UNKNOWN, build_vocabulary, encode_words
from jdl.errors import install_command
from jdl.report import classification, occlusion, page, run_details
from jdl.report.baselines import Baseline
from jdl.report.classification import Predictions
from jdl.report.learning_curves import curves, verdict
from jdl.tasks import BinaryClassification
from tests.experiment_source import SOURCE, contents, read
from tests.interruptions import Killed, interrupt_at, make_experiment


def rows(train, validation):
    """Rows of losses by step."""
    found = [("train", *point) for point in train] + [
        ("validation", *point) for point in validation
    ]
    return [
        {"step": step, "split": split, "metrics": {"loss": loss}} for split, step, loss in found
    ]


STEPS = range(100, 1100, 100)
FALLING = [(step, 1 / step) for step in STEPS]
RISING = [(step, 0.3 + abs(step - 400) / 1000) for step in STEPS]
LEVEL = [(step, max(0.3, 0.9 - step / 500) + step % 300 / 1e5) for step in STEPS]
UNSTABLE = [(step, 2.0 if step < 300 else 0.1 + step / 1000) for step in STEPS]
FLOOR = Baseline("most frequent label", "accuracy", 0.5)


@pytest.mark.parametrize(
    ("train", "validation", "result", "expected"),
    [
        (FALLING, RISING, {}, "Overfits from about step 400: validation loss rose from 0.3 to 0.9"),
        (FALLING, RISING, {}, "while training loss fell from 0.0025 to 0.001"),
        (FALLING, FALLING, {}, "Still improving at the end: validation loss fell from 0.00143"),
        (FALLING, LEVEL, {}, "Neither over- nor underfits"),
        (UNSTABLE, RISING, {}, "Unstable from about step 400: both losses rose"),
        (FALLING[-1:], RISING, {}, "validation loss rose from 0.3 to 0.9."),
        ([(step, 0.7) for step in STEPS], FALLING, {}, "Underfits: training loss did not fall"),
        (FALLING, [], {}, "No validation split: overfitting not assessed."),
        (FALLING, RISING[:2], {}, "Too few validation rows: overfitting not assessed."),
        ([], [], {}, "No validation split: overfitting not assessed."),
        (
            FALLING,
            [],
            {"metrics": {"train": {"loss": 0.01}, "test": {"loss": 0.5}}},
            "No validation split: overfitting not assessed. At the end the loss is 0.01 on "
            "train and 0.5 on test.",
        ),
        (
            FALLING,
            RISING,
            {"metrics": {"train": {"accuracy": 0.505}}},
            "Underfits: on the training split accuracy is 0.505, no better than 0.5 by the rule: "
            "most frequent label.",
        ),
        (FALLING, RISING, {"metrics": {"train": {"accuracy": 0.6}}}, "Overfits from"),
        (FALLING, [(100, float("nan")), *RISING], {}, "Overfits from about step 400"),
    ],
)
def test_the_verdict(train, validation, result, expected):
    assert expected in verdict(rows(train, validation), result, FLOOR)


def test_the_verdict_on_terms_is_that_on_the_supervised_one():
    both = rows(FALLING, RISING)
    for row in both:
        row["metrics"]["supervised"] = row["metrics"].pop("loss")
    assert "Overfits from about step 400" in verdict(both, {})
    for row in both:
        row["metrics"] = {"accuracy": 0.5}
    assert verdict(both, {}) == "Validation has no loss: overfitting not assessed."


def test_a_model_no_better_than_the_last_value_underfits():
    floor = Baseline("the last value again", "rmse", 2.0)
    for rmse, underfits in ((1.99, True), (2.5, True), (1.9, False)):
        result = {"metrics": {"train": {"rmse": rmse}}}
        text = verdict(rows(FALLING, FALLING), result, floor)
        assert text.startswith("Underfits") == underfits


def test_curves_are_the_rows():
    found = curves([*rows(FALLING, RISING), {"step": 3, "split": "skipped", "metrics": {"x": 1}}])
    assert list(found) == ["loss"]
    assert found["loss"]["validation"] == ([s for s, _ in RISING], [loss for _, loss in RISING])


def test_confusion_is_scikit_learn_s():
    labels, predicted = np.random.default_rng(0).integers(0, 5, (2, 300))
    np.testing.assert_array_equal(
        classification.confusion(labels, predicted, 6),
        confusion_matrix(labels, predicted, labels=range(6)),
    )


def test_the_most_confident_errors_come_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.05, 0.95], [0.3, 0.7]])
    labels = np.array([0, 0, 1, 0, 1])
    predictions = Predictions("test", np.arange(5), probabilities, labels, "the test split")
    assert list(classification.mistakes(predictions)) == [3, 1, 2]
    assert list(classification.mistakes(predictions, 2)) == [3, 1]


class Decides(nn.Module):
    """Says 1 where the word 5 occurs."""

    @nn.compact
    def __call__(self, tokens):
        bias = self.param("bias", nn.initializers.constant(-2.0), (1,))
        return bias + 4.0 * (tokens == 5).any(1, keepdims=True)


def test_occlusion_finds_the_word_that_decides(tmp_path):
    tokens = np.tile(np.arange(1, 7), (8, 1))
    experiment = jdl.Experiment(
        model=Decides(),
        task=BinaryClassification(inputs="tokens"),
        data=Arrays({"train": {"tokens": tokens, "label": np.arange(8) % 2}}),
        optimizer=jdl.optimizers.SGD(0.0),
        steps=1,
        batch_size=4,
        hooks=(),
    )
    run = jdl.train(experiment, tmp_path / "run")
    low, high = 1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))
    changes, probabilities = occlusion.influence(
        run, np.array([0, START, UNKNOWN, 3, 5, 4], np.int32)
    )
    np.testing.assert_allclose(probabilities, [low, high], rtol=1e-5)
    np.testing.assert_allclose(changes, [0, 0, 0, 0, high - low, 0], atol=1e-6)
    changes, probabilities = occlusion.influence(
        run, np.array([0, START, UNKNOWN, 3, 4, 4], np.int32)
    )
    assert probabilities.argmax() == 0
    assert not changes.any()
    # Either of two alone is not needed.
    assert not occlusion.influence(run, np.array([0, 0, START, 5, 3, 5], np.int32))[0].any()


def test_ids_are_turned_back_into_words():
    known = {"text": np.array(["The cat, the dog", "a cat"], object), "label": np.array([0, 1])}
    data = Words(Arrays({"train": known}, test_fraction=0.0, validation_fraction=0.0))
    words = data.vocabulary_words()
    ids = build_vocabulary(known["text"], data.vocab_size)
    assert all(words[index] == word for word, index in ids.items())
    assert len(words) == 3 + len(ids)
    found = encode_words("the bird, a cat", ids, 7)
    assert occlusion.text_of(found, words) == "the [?] a cat"


def test_overrides_as_flags_of_the_command_line():
    changes = {"steps": "10", "model.widths": ["4", "3"], "data.path": "a b$c", "data.name": "--x"}
    flags = shlex.join(as_flags(changes))
    assert flags == "--steps 10 --model.widths 4 3 --data.path 'a b$c' --data.name=--x"
    assert overrides(split(shlex.split(flags), {})[1]) == changes
    assert as_flags({"optimizer.learning_rate": 0.1}) == ["--optimizer.learning-rate", "0.1"]


def test_costs_in_words():
    result = {"seconds": 20.0, "compile_seconds": 5.0, "input_seconds": 1.0}
    result |= {"items_per_second": 1234.5, "traces": {"update": 3, "evaluate": 1}}
    result |= {"peak_bytes": 3 << 20}
    skipped = {"split": "skipped", "step": 1, "metrics": {}}
    costs = dict(run_details.costs(result, [skipped]))
    assert costs["compiling"] == "5.0 s, 25.0 % of the total"
    assert costs["waiting for input"] == "1.0 s, 5.0 % of the total"
    assert costs["recompiled"] == "update, 3 times"
    assert costs["peak memory"] == "3 MiB"
    assert costs["steps skipped as not finite"] == "1"
    assert costs["training speed"].startswith("1,234.5")
    old = dict(run_details.costs({"seconds": 20.0, "compile_seconds": 5.0}, []))
    for name in ("recompiled", "waiting for input", "peak memory", "training speed"):
        assert old[name] == "not recorded"
    row = {"split": "train", "step": 1, "timing": {"seconds": 9.0, "compile_seconds": 3.0}}
    unfinished = dict(run_details.costs({}, [row]))
    assert unfinished["compiling"] == "3.0 s, 33.3 % of the total"
    assert unfinished["waiting for input"] == "not recorded"


class Reader(html.parser.HTMLParser):
    """Tags, what they refer to, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.images = set(), [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        found = [value for name, value in attrs if name in ("src", "href")]
        self.links += found
        self.images += found if tag == "img" else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """A report of the run of `tests.experiment_source`, written elsewhere."""
    from jdl.cli.main import main

    out = tmp_path_factory.mktemp("reports") / "here"
    before = contents(trained)
    assert main(["report", str(trained), "--out", str(out)]) == 0
    assert contents(trained) == before
    return out


def test_the_page_stands_alone(reported):
    text = (reported / "index.html").read_text()
    seen = Reader(text)
    assert "url(" not in text
    assert not {"script", "link", "iframe"} & seen.tags
    assert all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert len(seen.images) == len(list(reported.glob("*.png"))) >= 2


def test_the_page_says_what_the_run_says(reported, trained):
    text = Reader((reported / "index.html").read_text()).text
    result = read(trained / "result.json")
    assert "Two clouds of points, classified by a small network." in text
    for scores in result["metrics"].values():
        assert all(f"{value:.4f}" in text for value in scores.values())
    for part in (
        "Metrics and baselines",
        "most frequent label",
        "logistic regression",
        "Learning curves",
        "Confusion matrix",
        "Time and memory",
        "Dense_0.kernel",
        "(3, 4)",
        f"jdl reproduce {trained}",
        "--model.widths 4 3",
        f"jax {result['versions']['jax']}",
    ):
        assert part in text
    right = round(result["metrics"]["test"]["accuracy"] * 16)
    assert f"{right} of 16." in text


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_of_an_older_version_is_reported(command, run):
    result = read(run / "result.json")
    for name in ("input_seconds", "traces", "peak_bytes", "parameters"):
        del result[name]
    (run / "result.json").write_text(json.dumps(result))
    code, out, err = command("report", run)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(run / "report/index.html")
    assert Reader((run / "report/index.html").read_text()).text.count("not recorded") >= 3
    # A report inside the run directory does not prevent resuming.
    assert command("evaluate", run)[0] == 0


def test_names_are_not_taken_for_html(command, run):
    hostile = "<script>alert('x')</script> & <b>"
    (run / "mine.py").write_text(SOURCE.replace("Two clouds", hostile))
    for name in ("experiment.json", "result.json"):
        recorded = read(run / name)
        (run / name).write_text(json.dumps({**recorded, "experiment": hostile}))
    code, _, err = command("report", run, "--experiment", run / "mine.py")
    assert (code, err) == (0, "")
    text = (run / "report/index.html").read_text()
    seen = Reader(text)
    assert not {"script", "b"} & seen.tags
    assert seen.text.count(hostile) >= 2


def test_html_is_escaped_once():
    inner = page.html("<td>{}</td>", "a < b & 'c'")
    assert inner == "<td>a &lt; b &amp; &#x27;c&#x27;</td>"
    assert page.join([inner, "<"]) == inner + "&lt;"
    assert "<script" not in page.table(("<script>",), [("<script>",), (page.html("{}", "<b>"),)])


def test_a_file_of_one_s_own_is_used_instead(command, run, tmp_path):
    (run / "experiment.py").unlink()
    (run / "objects.json").unlink()
    code, out, err = command("report", run)
    assert (code, out) == (2, "")
    assert "--experiment" in err
    (tmp_path / "mine.py").write_text(SOURCE)
    assert command("report", run, "--experiment", tmp_path / "mine.py")[0] == 0


def test_without_matplotlib_it_says_what_to_install(command, run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else found(name, *rest),
    )
    for words in (["report", run], ["compare", run]):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert err == f"jdl: pictures need an extra: {install_command('report')}\n"


def test_several_seeds_are_reported_one_by_one(command, run, tmp_path):
    (tmp_path / "many").mkdir()
    (tmp_path / "many/summary.json").write_text('{"seeds": [3, 4]}')
    code, out, err = command("report", "many")
    assert (code, out) == (2, "")
    assert "many/seed-3" in err


def test_a_run_that_has_not_ended(command, run):
    (run / "result.json").unlink()
    code, _, err = command("report", run)
    assert (code, err) == (0, "")
    text = Reader((run / "report/index.html").read_text()).text
    assert "has not ended" in text
    assert "of 6." in text, "validation, not test"
    assert "on the validation split" in text
    shutil.rmtree(run / "checkpoints")
    code, out, err = command("report", run)
    assert (code, out) == (2, "")
    assert "has no checkpoint yet" in err


IMAGES = '''"""Digits."""

from jdl import Experiment
from jdl.data import Digits
from jdl.models import MLP

experiment = Experiment(model=MLP(widths=()), data=Digits(), steps=2, hooks=())
'''
SERIES = '''"""A series."""

from pathlib import Path

from jdl import Experiment
from jdl.data import Series
from jdl.models import RNN
from jdl.tasks import Forecast

experiment = Experiment(
    model=RNN(vocab_size=0, hidden_size=2, cell="simple"),
    task=Forecast(),
    data=Series(str(Path(__file__).parent / "wave.csv"), length=4),
    steps=2,
    hooks=(),
)
'''
REVIEWS = '''"""Texts."""

import numpy as np

from jdl import Experiment
from jdl.config.overrides import as_flags
from jdl.data import Arrays, Words
from jdl.models import RNN
from jdl.tasks import BinaryClassification

texts = np.array(["good film", "bad film", "so bad", "good and fine"] * 8, object)
experiment = Experiment(
    model=RNN(vocab_size=20, embed_dim=2, hidden_size=2, cell="simple"),
    task=BinaryClassification(inputs="tokens"),
    data=Words(Arrays({"train": {"text": texts, "label": np.array([1, 0, 0, 1] * 8)}}), length=4),
    steps=2,
    batch_size=4,
    hooks=(),
)
'''
WRITER = '''"""Characters."""

from jdl import Experiment
from jdl.data import Arrays, Tokens
from jdl.models import GPT
from jdl.tasks import LanguageModeling

parts = {"train": {"text": ["abcab" * 9]}, "validation": {"text": ["bca"]}}
experiment = Experiment(
    model=GPT(vocab_size=3, max_position_embeddings=4, num_layers=1, num_heads=1, embed_dim=4),
    task=LanguageModeling(),
    data=Tokens(Arrays(parts), length=4),
    steps=2,
    batch_size=4,
    hooks=(),
)
'''


@pytest.mark.parametrize(
    ("text", "pictures", "parts"),
    [
        (IMAGES, {"curves", "confusion", "mistakes"}, ["Most confident errors"]),
        (SERIES, {"curves", "forecast"}, ["the last value again", "AR(20)"]),
        (
            REVIEWS,
            {"curves", "confusion"},
            ["Word attributions (occlusion)", "words occur", "film"],
        ),
        (WRITER, {"curves"}, ["Generated text", "frequency of each token"]),
    ],
    ids=["images", "series", "texts", "characters"],
)
def test_the_page_suits_the_task(command, tmp_path, text, pictures, parts):
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "wave.csv").write_text("$level\n" + "\n".join(f"{i % 7}" for i in range(120)))
    assert command("train", "own.py", "--workdir", "run", "--runtime.log-every", "1")[0] == 0
    code, out, err = command("report", "run", "--experiment", "own.py")
    assert (code, err) == (0, "")
    assert out == "run/report/index.html\n"
    assert {path.stem for path in (tmp_path / "run/report").glob("*.png")} == pictures
    shown = Reader((tmp_path / "run/report/index.html").read_text()).text
    assert all(part in shown for part in parts)


def test_a_run_broken_off_can_be_looked_at(tmp_path):
    from jdl.report.run_baselines import held_out

    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 9), tmp_path / "run")
    run = jdl.open(tmp_path / "run", make_experiment())
    predictions = classification.predict_held_out(run)
    assert held_out(run) == predictions.split == "validation"
    assert len(predictions.labels) == run.data.count("validation")
    accuracy = (predictions.predicted == predictions.labels).mean()
    assert run.evaluate("validation")["accuracy"] == pytest.approx(accuracy)
