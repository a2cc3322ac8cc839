"""Tables and texts from files: statistics are fitted on train, and errors name the cause."""

import logging

import numpy as np
import pytest

from jdl.data import Table, TextFile, TextTable, Tokens, Words
from jdl.errors import UserError

IRIS = "length,width,kind\n" + "\n".join(
    f"{i % 7 + 0.5},{i % 5},{'setosa' if i % 2 else 'virginica'}" for i in range(50)
)


def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def stack(source):
    return {name: np.stack([source[i][name] for i in range(len(source))]) for name in source[0]}


def test_inputs_are_scaled_by_training_alone_and_words_are_classes(tmp_path):
    path = write(tmp_path, IRIS)
    parts = {name: stack(s) for name, s in Table(path, "kind").splits().items()}
    assert list(parts) == ["train", "test", "validation"]
    np.testing.assert_allclose(parts["train"]["x"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(parts["train"]["x"].std(0), 1, atol=1e-6)
    assert abs(parts["test"]["x"].mean(0)).max() > 1e-3
    assert parts["train"]["y"].dtype == np.int32
    assert set(parts["train"]["y"]) == {0, 1}
    number = Table(path, "width", columns=("length",)).splits()["train"]
    assert stack(number)["x"].shape[1] == 1
    assert stack(number)["y"].dtype == np.float32
    classes = Table(path, "width", categorical=True).splits()["train"]
    assert set(stack(classes)["y"]) == {0, 1, 2, 3, 4}


def test_a_constant_column_stays_finite(tmp_path):
    path = write(tmp_path, "a,b,y\n" + "\n".join(f"1,{i},{i}" for i in range(20)))
    assert np.isfinite(stack(Table(path, "y").splits()["train"])["x"]).all()


def test_texts_with_labels_become_words(tmp_path):
    rows = "\n".join(
        f'"good, {"very " * (i % 3)}good film",{"pos" if i % 2 else "neg"}' for i in range(20)
    )
    path = write(tmp_path, "text,label\n" + rows)
    data = Words(TextTable(path, validation_fraction=0.0), vocab_size=6, length=5)
    part = stack(data.splits()["train"])
    assert part["tokens"].shape == (16, 5)
    assert set(part["label"]) == {0, 1}


def test_a_text_file_is_read_in_order(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    path = write(tmp_path, text, "text.txt")
    data = Tokens(TextFile(path), length=8, stride=8)
    parts = {name: stack(s)["tokens"] for name, s in data.splits().items()}
    assert list(parts) == ["train", "validation"]
    assert parts["train"][0].tolist() == [i % 26 for i in range(9)]
    assert parts["validation"][0].tolist() == [(900 + i) % 26 for i in range(9)]


@pytest.mark.parametrize(
    ("build", "text", "message"),
    [
        (lambda p: Table(p, "kinds"), IRIS, r"no column 'kinds' .*did you mean 'kind'\?"),
        (lambda p: Table(p, "kind", columns=("x",)), IRIS, "no column 'x'"),
        (lambda p: Table(p, "b"), "a,b\n1,2\nx,3\n", "column 'a' holds 'x' in row 2"),
        (lambda p: Table(p, "b"), "a,b\n1,2\n3\n", "line 3: 1 fields, where the header has 2"),
        (lambda p: Table(p, "b"), "a,b\n1,u\n3,\n", "column 'b' has no label in row 2"),
        (lambda p: Table(p, "b"), "b\n1\n2\n", "no column for inputs beside 'b'"),
        (lambda p: TextTable(p), "texts,label\na,b\n", r"no column 'text' .*mean 'texts'\?"),
        (lambda p: TextTable(p), "text,label\na,\n", "column 'label' has no label in row 1"),
        (lambda p: Table(p + "x", "b"), "a,b\n", "No such file"),
        (lambda p: TextFile(p + "x"), "", "No such file"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, build, text, message):
    with pytest.raises(UserError, match=message) as caught:
        build(write(tmp_path, text)).splits()
    assert len(str(caught.value).splitlines()) == 1
    assert "table.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "target", "leaks"),
    [
        ([f"{3 * (i % 9) - 1}" for i in range(90)], [f"{i % 9}.5" for i in range(90)], True),
        (["", "2024-05-01", "2024-05-02"] * 30, ["y", "n", "n"] * 30, True),
        ([f"{i % 3 + i / 1000}" for i in range(90)], ["ynm"[i % 3] for i in range(90)], True),
        (["abc"[i % 3] for i in range(90)], ["yn"[i % 3 > 1] for i in range(90)], True),
        ([f"{i % 3 + i / 10}" for i in range(90)], ["ynm"[i % 3] for i in range(90)], False),
        ([f"word{i % 80}" for i in range(90)], ["yn"[i % 2] for i in range(90)], False),
        (["abc"[i % 3] for i in range(90)], ["yn"[i % 5 > 2] for i in range(90)], False),
    ],
)  # fmt: skip
def test_a_column_that_gives_the_target_away_is_named(tmp_path, caplog, column, target, leaks):
    lines = [f"{i % 7},{x},{y}" for i, (x, y) in enumerate(zip(column, target, strict=True))]
    table = Table(write(tmp_path, "\n".join(["other,given,wanted", *lines])), "wanted")
    with caplog.at_level(logging.WARNING):
        table.splits()
    found = "column 'given' alone determines the target 'wanted'" in caplog.text
    assert found == leaks
    assert "'other'" not in caplog.text
