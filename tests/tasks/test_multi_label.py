"""Multi-label classification against scikit-learn, with labels from lists, folders and files."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, log_loss

import jdl
from jdl import Experiment
from jdl.data import Arrays, ImageFolder, Table, Texts, TextTable, Words
from jdl.errors import UserError
from jdl.metrics import AveragePrecision, compute
from jdl.models import MLP
from jdl.optimizers import Adam
from jdl.parallel import Pmap, Single
from jdl.tasks import MultiLabelClassification

RNG = np.random.default_rng(0)
NAMES = ("cat", "dog", "owl")
X = np.float32(RNG.normal(size=(64, 5)))
Y = (X[:, :3] + 0.3 * RNG.normal(size=(64, 3)) > 0.4).astype(np.int32)
LISTS = [[name for name, one in zip(NAMES, row, strict=True) if one] for row in Y]
BOTH = (AveragePrecision(), AveragePrecision(per_class=True))


def test_loss_and_accuracy_are_scikit_learns_and_padding_never_counts():
    logits, labels = jnp.asarray(2 * X[:, :3]), jnp.asarray(Y)
    mask = jnp.arange(64) < 50
    batch = {"label": labels, "mask": mask}
    found = compute(MultiLabelClassification().loss_and_metrics(logits, batch))
    shares = np.asarray(jax.nn.sigmoid(logits), np.float64)[:50]
    expected = np.mean([log_loss(Y[:50, i], shares[:, i]) for i in range(3)])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx(((shares > 0.5) == Y[:50]).mean())
    weighted = MultiLabelClassification(positive_weights=(3.0, 1.0, 1.0))
    more = compute(weighted.loss_and_metrics(logits, batch))["loss"]
    extra = -(2 * Y[:50, 0] * np.log(shares[:, 0])).sum() / shares.size
    assert more == pytest.approx(expected + extra, rel=1e-5)


def fit(y=LISTS, **settings):
    settings = {"epochs": 20, "batch_size": 24, "optimizer": Adam(3e-2), "hooks": (), **settings}
    return jdl.fit(MLP((8,), 3), X, y, **settings)


@pytest.fixture(scope="module")
def run():
    return fit(task=MultiLabelClassification(metrics=BOTH))


def test_average_precision_is_scikit_learns_in_any_batches(run):
    found, prediction = run.evaluate("train"), run.predict(X)
    expected = average_precision_score(Y, prediction, average=None)
    np.testing.assert_allclose(found["average_precision_per_class"], expected, rtol=1e-6)
    assert found["average_precision"] == pytest.approx(np.mean(expected))
    assert 0.7 < found["average_precision"] < 1
    other = fit(task=MultiLabelClassification(metrics=BOTH), strategy=Pmap(2), batch_size=24)
    assert other.evaluate("train")["average_precision"] == pytest.approx(
        found["average_precision"], abs=1e-6
    )


def test_a_class_without_a_positive_label_has_no_average_precision():
    targets = np.array([[1, 0], [0, 0]])
    rows = {"prediction": np.array([[0.9, 0.2], [0.1, 0.3]]), "targets": targets}
    np.testing.assert_array_equal(AveragePrecision(per_class=True).compute(rows), [1, np.nan])
    assert AveragePrecision().compute(rows) == 1
    assert np.isnan(AveragePrecision().compute({**rows, "targets": 0 * targets}))


def test_lists_of_classes_and_rows_of_zeros_and_ones_are_the_same(run, capsys):
    listed = fit(epochs=1)
    assert isinstance(listed.experiment.task, MultiLabelClassification)
    assert "y read as labels of 3 classes: cat, dog, owl" in capsys.readouterr().out
    rows = fit(Y, epochs=1, task=MultiLabelClassification())
    np.testing.assert_array_equal(listed.predict(X), rows.predict(X))
    task, names = run.experiment.task, run.experiment.data.output_names()
    assert names == NAMES
    one = task.format_prediction(np.float32([0.9, 0.2, 0.6]), names)
    assert one == {"prediction": ["cat", "owl"], "probabilities": [0.9, 0.2, 0.6]}
    assert task.format_prediction(np.float32([0.1, 0.9, 0.6]), ())["prediction"] == [1, 2]


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        (Y[:, 0], MultiLabelClassification(), r"y has shape \(64,\), where several labels"),
        (2 * Y, MultiLabelClassification(), "'label' holds 2 at row"),
        (Y[:, :2], MultiLabelClassification(), r"has shape \(2,\) per example and the model's"),
        (Y, None, r"task=MultiLabelClassification\(\) for several labels"),
        (Y, MultiLabelClassification(positive_weights=(1.0,)), "has 1 weights, the model 3"),
    ],
)
def test_targets_that_are_no_labels_are_named(y, task, message):
    with pytest.raises(UserError, match=message):
        fit(y, task=task)
    with pytest.raises(UserError, match="positive_weights are finite and above 0"):
        MultiLabelClassification(positive_weights=(0.0,))


def test_an_unknown_class_in_validation_is_named():
    with pytest.raises(UserError, match="validation y holds the class 'ox', unknown in training"):
        fit(validation_data=(X[:2], [["cat"], ["ox"]]))


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8)).save(path)


def test_labels_come_from_folders(tmp_path):
    for name in ("cat", "dog", "cat+dog", "dog + owl"):
        for index in range(2):
            draw(tmp_path / name / f"{index}.png")
    data = ImageFolder(str(tmp_path), label_delimiter="+", test_fraction=0, validation_fraction=0)
    assert data.output_names() == NAMES
    source = data.splits()["train"]
    found = {source.paths[i].parent.name: source[i]["label"].tolist() for i in range(8)}
    wanted = {"cat": [1, 0, 0], "dog": [0, 1, 0], "cat+dog": [1, 1, 0], "dog + owl": [0, 1, 1]}
    assert found == wanted
    again = data.with_fitted(data.fit())
    assert again.splits()["train"][0]["label"].tolist() == source[0]["label"].tolist()
    task = MultiLabelClassification(metrics=BOTH)
    settings = {"strategy": Single(), "hooks": (), "steps": 2, "batch_size": 4}
    run = jdl.train(Experiment(model=MLP((), 3), task=task, data=data, **settings))
    assert run.evaluate("train")["average_precision_per_class"].shape == (3,)


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_labels_come_from_columns_of_files(tmp_path):
    for index in range(4):
        draw(tmp_path / "images" / f"{index}.png")
    labels = ["cat;dog", "", "owl", "dog; cat"]
    rows = [["file", "label"], *[[f"{i}.png", each] for i, each in enumerate(labels)]]
    file = write(tmp_path / "labels.csv", rows)
    whole = {"test_fraction": 0, "validation_fraction": 0, "label_delimiter": ";"}
    images = ImageFolder(str(tmp_path / "images"), labels_file=file, **whole)
    wanted = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    source = images.splits()["train"]
    assert [source[i]["label"].tolist() for i in range(4)] == wanted

    rows = [["size", "kinds"], *[[f"{i}.5", each] for i, each in enumerate(labels)]]
    table = Table(write(tmp_path / "table.csv", rows), "kinds", **whole)
    source = table.splits()["train"]
    assert [source[i]["y"].tolist() for i in range(4)] == wanted
    assert table.output_names() == NAMES
    fitted = table.with_fitted(table.fit())
    assert [fitted.splits()["train"][i]["y"].tolist() for i in range(4)] == wanted
    write(tmp_path / "table.csv", [*rows, ["7.5", "ox;cat"]])
    with pytest.raises(UserError, match="column 'kinds' holds the class 'ox', unknown in training"):
        fitted.splits()
    with pytest.raises(UserError, match="label_delimiter is a mark"):
        Table("a.csv", "y", label_delimiter=" ")


def test_labels_come_from_a_column_for_each_class(tmp_path):
    whole = {"test_fraction": 0, "validation_fraction": 0}
    order = ("dog", "cat", "owl")
    wanted = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    marks = [["1", "True", "0"], ["0", "0", "0.0"], ["0", "false", "1.0"], ["1", "1", "0"]]
    for index in range(4):
        draw(tmp_path / "images" / f"{index}.png")
    rows = [["file", *order], *[[f"{i}.png", *each] for i, each in enumerate(marks)]]
    file = write(tmp_path / "labels.csv", rows)
    images = ImageFolder(str(tmp_path / "images"), labels_file=file, label_column=order, **whole)
    text = write(
        tmp_path / "texts.csv",
        [["text", *order], *[[f"a text {i}", *each] for i, each in enumerate(marks)]],
    )
    texts = TextTable(text, label_column=order, **whole)
    table = write(
        tmp_path / "table.csv", [["size", *order], *[[f"{i}.5", *m] for i, m in enumerate(marks)]]
    )
    table = Table(table, order, **whole)
    for data in (images, texts, table, Words(texts, length=4), Texts(texts, length=4)):
        name = data.array_names[1]
        for each in (data, data.with_fitted(data.fit())):
            source = each.splits()["train"]
            assert [source[i][name].tolist() for i in range(4)] == wanted
            assert source[0][name].dtype == np.int32
            assert each.output_names() == order
    assert list(table.splits()["train"][0]["x"].shape) == [1]
    run = jdl.train(
        Experiment(
            model=MLP((), 3),
            task=MultiLabelClassification(metrics=BOTH),
            data=table,
            strategy=Single(),
            hooks=(),
            steps=2,
            batch_size=4,
        )
    )
    assert run.evaluate("train")["average_precision_per_class"].shape == (3,)


@pytest.mark.parametrize("mark", ["2", "", "yes", "0.5"])
def test_what_is_no_label_of_a_class_is_named(tmp_path, mark):
    for index in range(2):
        draw(tmp_path / "images" / f"{index}.png")
    file = write(
        tmp_path / "all.csv",
        [
            ["file", "text", "size", "cat", "dog"],
            ["0.png", "a", 1, 0, 1],
            ["1.png", "b", 2, 1, mark],
        ],
    )
    problem = f"holds '{mark}'" if mark else "has no label"
    for data in (
        ImageFolder(str(tmp_path / "images"), labels_file=file, label_column=("cat", "dog")),
        TextTable(file, label_column=("cat", "dog")),
        Table(file, ("cat", "dog"), columns=("size",)),
    ):
        with pytest.raises(UserError, match=f"all.csv: column 'dog' {problem} in row 2"):
            data.splits()
    columns = {"label_column": ("cat", "dog")}
    for make, message in (
        (lambda: ImageFolder("x", labels_file=file, label_delimiter=";", **columns), "for one col"),
        (lambda: ImageFolder("x", **columns), "label_column is of data.labels_file"),
        (lambda: Table(file, ("cat", "dog"), categorical=False), "categorical is for one target"),
        (lambda: Table(file, ("cat", "cat")), "data.target holds 'cat' twice"),
        (lambda: Table(file, ("cat", "dog"), group="dog"), "data.group and data.target are both"),
        (lambda: Table(file, ("cat", "cow"), columns=("size",)).splits(), "has no column 'cow'"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_arrays_train_with_labels_of_several_classes():
    data = Arrays({"train": {"image": X, "label": Y}}, class_names=NAMES)
    settings = {"strategy": Single(), "hooks": (), "steps": 2, "batch_size": 8}
    experiment = Experiment(
        model=MLP((), 3), task=MultiLabelClassification(metrics=BOTH), data=data, **settings
    )
    assert 0 <= jdl.train(experiment).evaluate("test")["average_precision"] <= 1
