"""Predictions from files equal those for the data set's examples; errors name bad files."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

import jdl
from jdl.data import Arrays, Data, Table, TextFile, Tokens, Words
from jdl.data.sources import root_indices
from jdl.data.text import START, UNKNOWN
from jdl.errors import UserError
from jdl.inference.predict import predict_files
from jdl.models import MLP, BagOfWords
from jdl.tasks import BinaryClassification, Classification, Forecast, Regression
from jdl.tasks.base import to_json
from jdl.trainer.opening import restore_run

FILE = '''"""A small experiment."""

import numpy as np

from jdl import Experiment
from jdl.data import Arrays, Digits, ImageFolder, Resize, Scale, Series, Table, TextTable, Words
from jdl.models import MLP, RNN
from jdl.tasks import BinaryClassification, Classification, Forecast, Regression


class Points(Arrays):
    """Examples in text files: numbers in rows."""

    def reader(self):
        return lambda path: {{"image": np.loadtxt(path, ndmin=2)}}


experiment = Experiment(
    model={model}, task={task}, data={data}, steps=4, batch_size=4, hooks=()
)
'''


@pytest.fixture
def trained(tmp_path):
    """Trains a model on a task and data that are given as code; gives the run."""

    def train(model, task, data):
        path = tmp_path / "tiny.py"
        path.write_text(FILE.format(model=model, task=task, data=data))
        file = jdl.load(path)
        return jdl.train(file.experiment, tmp_path / "run", file=file)

    return train


@pytest.fixture
def predicted(command, tmp_path):
    """Predicts from files with the run of `trained`; gives what is printed, line by line."""

    def predict(*files):
        code, out, err = command("predict", tmp_path / "run", *files)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return predict


def stack(source):
    return {name: np.stack([source[i][name] for i in range(len(source))]) for name in source[0]}


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_grey_images_are_classified_by_number(trained, predicted, tmp_path):
    run = trained("MLP((8,))", "Classification()", "Digits(device_transforms=(Scale(),))")
    images = stack(run.experiment.data.splits()["test"])["image"][:9]
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    lines = predicted(*files)
    expected = run.predict(images)
    assert [line["file"] for line in lines] == list(map(str, files))
    for line, shares in zip(lines, expected, strict=True):
        assert list(line) == ["file", "prediction", "probability", "probabilities"]
        np.testing.assert_allclose(line["probabilities"], shares, atol=1e-6)
        assert line["prediction"] == shares.argmax()
        assert line["probability"] == max(line["probabilities"])
        assert all(share == round(share, 6) for share in line["probabilities"])


@pytest.mark.parametrize(("mode", "resize"), [("RGB", True), ("L", False)])
def test_images_of_any_size_are_brought_to_that_of_training(
    trained, predicted, tmp_path, mode, resize
):
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for index in range(6):
            size = (5, 4 + index) if resize else (6, 4)
            pixels = generator.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / label / f"{index}.png")
    transforms = "transforms=(Resize(height=6, width=4),), " if resize else ""
    options = f"mode={mode!r}, {transforms}device_transforms=(Scale(),)"
    data = f"ImageFolder({str(tmp_path / 'pets')!r}, {options})"
    run = trained("MLP((8,), 2)", "Classification()", data)
    wide, same = tmp_path / "wide.png", tmp_path / "pets" / "dog" / "5.png"
    Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8)).save(wide)
    lines = predicted(wide, same)
    for line, file in zip(lines, (wide, same), strict=True):
        picture = Image.open(file).convert(mode).resize((4, 6), Image.Resampling.BILINEAR)
        (shares,) = run.predict(np.asarray(picture).reshape(1, 6, 4, -1))
        np.testing.assert_allclose(line["probabilities"], shares, atol=1e-6)
        assert line["prediction"] == ("cat", "dog")[shares.argmax()]


def test_a_table_is_scaled_as_in_training(trained, predicted, tmp_path):
    generator = np.random.default_rng(0)
    inputs = generator.normal(5, 3, (30, 2))
    rows = [[*values, f"day {i}", i] for i, values in enumerate(inputs)]
    path = write_csv(tmp_path / "table.csv", ["a", "b", "name", "number"], rows)
    run = trained("MLP((8,), 1)", "Regression(inputs='x', targets='y')",
                  f"Table({str(path)!r}, 'number', keep=('name',))")  # fmt: skip
    others = [[b, a] for a, b in inputs.tolist()]
    lines = predicted(write_csv(tmp_path / "new.csv", ["b", "a"], others))
    assert [line["row"] for line in lines] == list(range(1, 31))
    parts = run.experiment.data.splits()
    assert len(parts) == 3
    for part in map(stack, parts.values()):  # the target tells which row an example was
        found = [lines[int(row)]["prediction"] for row in part["y"]]
        np.testing.assert_allclose(found, run.predict({"x": part["x"]})[:, 0], rtol=1e-6)


def test_classes_of_a_table_are_named(trained, predicted, tmp_path):
    inputs = np.random.default_rng(0).normal(5, 3, (30, 2)).tolist()
    kinds = ("rose", "lily", "iris")
    rows = [[*values, kinds[i % 3]] for i, values in enumerate(inputs)]
    path = write_csv(tmp_path / "table.csv", ["a", "b", "kind"], rows)
    run = trained("MLP((8,), 3)", "Classification(inputs='x', targets='y')",
                  f"Table({str(path)!r}, 'kind')")  # fmt: skip
    raw = Data.splits(run.experiment.data)["train"]
    known = stack(raw)["x"]
    expected = run.predict({"x": (inputs - known.mean(0)) / known.std(0)})
    lines = predicted(path)
    np.testing.assert_allclose([line["probabilities"] for line in lines], expected, atol=1e-6)
    names = [("iris", "lily", "rose")[shares.argmax()] for shares in expected]
    assert [line["prediction"] for line in lines] == names
    assert len(set(names)) > 1


def test_texts_are_encoded_as_in_training(trained, predicted, tmp_path):
    vocabulary = ["good", "bad", "film", "plot", "very", "not"]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(vocabulary, 1 + i % 7)) for i in range(40)]
    rows = [[text, ("pos", "neg")[i % 2]] for i, text in enumerate(texts)]
    path = write_csv(tmp_path / "reviews.csv", ["review", "mark"], rows)
    run = trained(
        "RNN(vocab_size=7, embed_dim=4, hidden_size=4)",
        "BinaryClassification(inputs='tokens')",
        f"Words(TextTable({str(path)!r}, text_column='review', label_column='mark'), "
        "vocab_size=7, length=5)",
    )
    words = run.experiment.data
    texts = [example["text"] for example in map(words.text.splits()["test"].__getitem__, range(8))]
    expected = run.predict(stack(words.splits()["test"])["tokens"])
    table = write_csv(tmp_path / "new.csv", ["review"], [[text] for text in texts])
    files = [tmp_path / f"{i}.txt" for i in range(8)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    lines = predicted(table, *files)
    assert [line.get("row") for line in lines] == [*range(1, 9), *[None] * 8]
    for line, share in zip(lines, [*expected, *expected], strict=True):
        assert line["probability"] == pytest.approx(share, abs=1e-6)
        assert line["prediction"] == ("neg", "pos")[int(share > 0.5)]


def test_a_text_set_without_a_reader_of_its_own_takes_texts(tmp_path):
    arrays = {"text": np.array([b"good good film", b"bad film"], object), "label": np.array([1, 0])}
    data = Words(Arrays({"train": arrays}, test_fraction=0.0, validation_fraction=0.0), length=4)
    (tmp_path / "a.txt").write_text("Bad, unseen FILM")
    write_csv(tmp_path / "b.csv", ["text"], [["film"], ["bad"]])
    read = data.reader()
    ids = {"film": 4, "bad": 5}
    np.testing.assert_array_equal(
        read(tmp_path / "a.txt")["tokens"], [[START, ids["bad"], UNKNOWN, ids["film"]]]
    )
    np.testing.assert_array_equal(
        read(tmp_path / "b.csv")["tokens"], [[0, 0, START, ids["film"]], [0, 0, START, ids["bad"]]]
    )
    assert data.text.reader()(tmp_path / "a.txt")["text"][0] == b"Bad, unseen FILM"


@pytest.mark.parametrize(
    "options",
    ["length=5", "length=5, horizon=3, difference=4, log=True, targets=('b',)"],
)
def test_a_series_is_forecast_after_its_last_row(trained, predicted, tmp_path, options):
    generator = np.random.default_rng(0)
    values = 20 + np.cumsum(generator.normal(size=(80, 2)), 0)
    path = write_csv(tmp_path / "series.csv", ["a", "b"], values.tolist())
    outputs = 1 if "targets" in options else 2
    run = trained(
        f"RNN(vocab_size=0, cell='simple', hidden_size=4, features={outputs})",
        "Forecast()",
        f"Series({str(path)!r}, {options})",
    )
    series = run.experiment.data
    examples = [
        example
        for part in series.splits().values()
        for example in map(part.__getitem__, range(len(part)))
    ]
    first = series.difference + series.length  # rows that the first window needs
    for rows in (first, 50, 80 - series.horizon):
        known = write_csv(tmp_path / "known.csv", ["b", "a"], values[:rows, ::-1].tolist())
        (line,) = predicted(known)
        example = {name: value[None] for name, value in examples[rows - first].items()}
        expected = run.predict(example)[0]
        assert list(line) == ["file", "prediction"]
        assert list(line["prediction"]) == list(series.targets or ("a", "b"))
        np.testing.assert_allclose(list(line["prediction"].values()), expected, rtol=1e-5)
    truth = examples[rows - first]["value"]  # the last row of the series: what was forecast
    np.testing.assert_allclose(truth, values[-1, -outputs:], rtol=1e-6)


def test_inputs_of_one_shape_go_through_the_model_in_batches(trained, tmp_path):
    run = trained("MLP((8,))", "Classification()", "Digits()")
    images = stack(run.experiment.data.splits()["test"])["image"][:9]
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    again = restore_run(tmp_path / "run", run.experiment)
    sizes, compiled = [], again.compiled

    def counted(state, batch):
        sizes.append(int(batch["mask"].sum()))
        return compiled.predict(state, batch)

    again.compiled = dataclasses.replace(compiled, predict=counted)
    read = run.experiment.data.reader()
    assert len(list(predict_files(again, read, files, pytest.fail))) == 9
    assert sizes == [4, 4, 1]
    assert again.traces["predict"] == 1
    assert "data" not in vars(again)  # it is not opened


def test_a_bad_file_is_named_and_the_others_go_on(trained, command, tmp_path):
    trained("MLP((8,))", "Classification()", "Digits()")
    good, broken, text = (tmp_path / name for name in ("good.png", "broken.png", "text.png"))
    noise = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    Image.fromarray(noise).save(good)
    broken.write_bytes(good.read_bytes()[:1000])
    text.write_text("no image")
    bad = [broken, tmp_path / "missing.png", text]
    code, out, err = command("predict", tmp_path / "run", broken, good, *bad[1:])
    assert code == 1
    assert json.loads(out)["file"] == str(good)
    assert len(err.splitlines()) == 3
    for file, sentence in zip(bad, err.splitlines(), strict=True):
        assert sentence.startswith(f"jdl: {file} is no readable image: ")
    code, out, err = command("predict", tmp_path / "run", *bad)
    assert (code, out, len(err.splitlines())) == (2, "", 3)
    code, out, err = command(
        "predict", tmp_path / "run", "--experiment", tmp_path / "tiny.py", good, good
    )
    assert (code, len(out.splitlines()), err) == (0, 2, "")


def test_a_table_that_lacks_a_column_or_holds_words_is_named(trained, command, tmp_path):
    rows = [[i, i * i % 7, i] for i in range(30)]
    path = write_csv(tmp_path / "table.csv", ["speed", "mass", "y"], rows)
    trained("MLP((8,), 1)", "Regression(inputs='x', targets='y')", f"Table({str(path)!r}, 'y')")
    for header, row, complaint in (
        (
            ["speed", "mas"],
            [1, 2],
            "has no column 'mass' (it has 'speed', 'mas'); did you mean 'mas'?",
        ),
        (["speed", "mass"], [1, "x"], "column 'mass' holds 'x' in row 1, no number"),
    ):
        new = write_csv(tmp_path / "new.csv", header, [row])
        code, out, err = command("predict", tmp_path / "run", new)
        assert (code, out) == (2, "")
        assert err.startswith(f"jdl: {new}")
        assert complaint in err


def test_a_series_that_is_too_short_is_named(tmp_path):
    path = write_csv(tmp_path / "series.csv", ["a"], [[i] for i in range(60)])
    short = write_csv(tmp_path / "short.csv", ["a"], [[i] for i in range(6)])
    series = jdl.data.Series(str(path), length=5, difference=2)
    with pytest.raises(UserError, match=r"short\.csv has 6 values, where a forecast needs 7"):
        series.reader()(short)


def test_a_reader_of_one_s_own_and_examples_of_another_shape(trained, command, tmp_path):
    run = trained("MLP((8,), 2)", "Classification()",
                  "Points({'train': {'image': np.arange(60.).reshape(20, 3), "
                  "'label': np.arange(20) % 2}})")  # fmt: skip
    (tmp_path / "good.txt").write_text("1 2 3\n4 5 6\nnan 0 0\n")
    (tmp_path / "wide.txt").write_text("1 2 3 4\n")
    wide, good = tmp_path / "wide.txt", tmp_path / "good.txt"
    code, out, err = command("predict", tmp_path / "run", wide, good)
    assert not {"NaN", "Infinity"} & {*re.findall(r"\w+", out)}, "strict JSON has neither"
    *lines, undefined = [json.loads(line) for line in out.splitlines()]
    assert undefined["probabilities"] == [None, None]
    np.testing.assert_allclose(
        [line["probabilities"] for line in lines],
        run.predict(np.array([[1.0, 2, 3], [4, 5, 6]])),
        atol=1e-6,
    )
    assert (code, len(lines)) == (1, 2)
    assert err == f"jdl: {wide}: 'image' has shape (4,), where the run was trained on (3,)\n"


def test_what_cannot_be_predicted_from_files_says_so(command, clouds, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc" * 50)
    with pytest.raises(UserError, match="does not support: use `jdl generate`"):
        Tokens(TextFile(str(text))).reader()
    arrays = {"train": {"image": np.zeros((20, 3)), "label": np.arange(20) % 2}}
    with pytest.raises(UserError, match=r"arrays does not say .* define Arrays\.reader"):
        Arrays(arrays).reader()
    assert command("train", clouds, "--workdir", "run", "--steps", "1")[0] == 0
    code, out, err = command("predict", "run", "x.png")
    assert (code, out) == (2, "")
    assert "arrays does not say how a file becomes an example" in err


def test_what_a_task_says_of_a_prediction():
    shares = np.array([0.1, 0.7, 0.2], np.float32)
    probabilities = {"probability": 0.7, "probabilities": [0.1, 0.7, 0.2]}
    assert Classification().format_prediction(shares, ("a", "b", "c")) == {
        "prediction": "b",
        **probabilities,
    }
    assert Classification().format_prediction(shares, ("a", "b")) == {
        "prediction": 1,
        **probabilities,
    }
    share = np.float32(0.2)
    assert BinaryClassification().format_prediction(share, ()) == {
        "prediction": 0,
        "probability": 0.2,
    }
    assert BinaryClassification().format_prediction(share, ("no", "yes"))["prediction"] == "no"
    numbers = np.array([0.1, 2.5], np.float32)
    assert Regression().format_prediction(numbers[:1], ()) == {"prediction": 0.1}
    assert Regression().format_prediction(numbers, ()) == {"prediction": [0.1, 2.5]}
    assert Forecast().format_prediction(numbers, ("a", "b")) == {"prediction": {"a": 0.1, "b": 2.5}}
    assert Forecast().format_prediction(numbers, ()) == {"prediction": [0.1, 2.5]}
    for value in np.random.default_rng(0).normal(size=20).astype(np.float32):
        assert np.float32(to_json(value)) == value


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_words_gaps_and_dates_of_a_table_need_no_names_of_arrays(tmp_path, suffix):
    generator = np.random.default_rng(0)
    columns = ["day", "kind", "size", "id", "y"]
    rows = [
        [f"2024-01-{1 + i % 28:02}", ("a", "b", "")[i % 3], i if i % 4 else "NA", f"no {i}", label]
        for i, label in enumerate(generator.choice(["no", "yes"], 60))
    ]
    table = Table(str(write_csv(tmp_path / "t.csv", columns, rows)), "y", keep=("id",))
    run = jdl.train(jdl.Experiment(MLP((4,), 2), data=table, steps=2, batch_size=8, hooks=()))
    assert (run.experiment.task.inputs, run.experiment.task.targets) == ("x", "y")
    new = write_csv(tmp_path / f"new.{suffix}", columns[2::-1], [row[2::-1] for row in rows])
    if suffix == "tsv":
        new.write_text(new.read_text().replace(",", "\t"))
    lines = list(predict_files(run, table.reader(), [new], pytest.fail))
    assert [line["row"] for line in lines] == list(range(1, 61))
    for part in table.splits().values():
        place, x = (root_indices(part), stack(part)["x"])
        found = [lines[i]["probabilities"] for i in place]
        np.testing.assert_allclose(found, run.predict({"x": x}), atol=1e-6)
    assert {line["prediction"] for line in lines} <= {"no", "yes"}


def test_tokens_that_the_model_does_not_know_are_not_predicted_from():
    tokens = np.random.default_rng(0).integers(0, 8, (16, 4))
    run = jdl.fit(
        BagOfWords(vocab_size=8, embed_dim=4, num_classes=2), tokens, tokens[:, 0] % 2,
        epochs=1, hooks=(),
    )  # fmt: skip
    for token in (8, -2):
        with pytest.raises(UserError, match=f"the input: 'image' has token {token}, outside"):
            run.predict(np.full((1, 4), token))


def test_a_folder_and_the_frames_of_a_video_are_images(trained, command, tmp_path):
    av = pytest.importorskip("av")
    run = trained("MLP((8,))", "Classification()", "Digits(device_transforms=(Scale(),))")
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)
    for name, image in zip(("a.png", "b/c.png"), pixels, strict=False):
        Image.fromarray(image).save(folder / name)
    for name in ("notes.txt", ".hidden.png"):
        (folder / name).write_text("no picture")
    with av.open(str(folder / "film.avi"), "w") as video:
        stream = video.add_stream("ffv1", rate=5)  # without losses
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for image in pixels:
            frame = av.VideoFrame.from_ndarray(np.stack([image] * 3, -1), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    code, out, err = command("predict", tmp_path / "run", folder)
    assert code == 0
    assert re.fullmatch(r"4 frames in [\d.]+ s: [\d.]+ frames/s\n", err)
    lines = [json.loads(line) for line in out.splitlines()]
    film = str(folder / "film.avi")
    assert [line["file"] for line in lines] == [
        str(folder / "a.png"), str(folder / "b/c.png"), film, film, film, film
    ]  # fmt: skip
    assert [(line["frame"], line["seconds"]) for line in lines[2:]] == [
        (0, 0.0), (1, 0.2), (2, 0.4), (3, 0.6)
    ]  # fmt: skip
    small = [Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR) for image in pixels]
    expected = run.predict(np.stack([np.asarray(image) for image in small])[..., None])
    for line, shares in zip(lines, [*expected[:2], *expected], strict=True):
        np.testing.assert_allclose(line["probabilities"], shares, atol=1e-5)

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    code, _, err = command("predict", tmp_path / "run", tmp_path / "empty")
    assert (code, err) == (
        2,
        f"jdl: the folder {tmp_path / 'empty'} has no files to predict from\n",
    )
    code, _, err = command("predict", tmp_path / "run", tmp_path / "broken.mp4")
    assert code == 2
    assert f"{tmp_path / 'broken.mp4'} is no readable video: " in err
