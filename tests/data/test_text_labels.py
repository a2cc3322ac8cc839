"""Labels of texts and series: real values stay real, words become classes, gaps are named."""

import json

import numpy as np
import pytest

from jdl.data import BPE, Arrays, Series, Texts, TextTable, Words
from jdl.errors import UserError

WHOLE = {"test_fraction": 0.0, "validation_fraction": 0.0}


def words(labels):
    texts = np.array([f"w{i}" for i in range(len(labels))], object)
    return Words(Arrays({"train": {"text": texts, "label": labels}}, **WHOLE), length=2)


@pytest.mark.parametrize(
    ("labels", "dtype", "expected", "names"),
    [
        (np.array([0.1, 0.9, 1.7]), "f4", [0.1, 0.9, 1.7], ()),
        (np.array([0.1, 0.9], "f4"), "f4", [0.1, 0.9], ()),
        (np.array([1.0, 0.0]), "f4", [1, 0], ()),
        ([0.5, 2], "f4", [0.5, 2], ()),
        (np.array([3, 1]), "i4", [3, 1], ()),
        (np.array([3, 1], np.uint8), "i4", [3, 1], ()),
        (np.array([True, False]), "i4", [1, 0], ()),
        (["pos", "neg", "pos"], "i4", [1, 0, 1], ("neg", "pos")),
        (np.array(["b", "a"], object), "i4", [1, 0], ("a", "b")),
        (np.array([b"b", b"a"], object), "i4", [1, 0], ("a", "b")),
        (np.array([2**31 - 1, 0]), "i4", [2**31 - 1, 0], ()),
        (np.array([-1, 5]), "i4", [-1, 5], ()),
    ],
)
def test_labels_of_words(labels, dtype, expected, names):
    data = words(labels)
    found = data.splits()["train"].arrays["label"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected)
    assert data.output_names() == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([3_000_000_000, 1]), r"'label' holds 3000000000 at row 0"),
        (np.array([0, -(2**31) - 1]), r"'label' holds -2147483649 at row 1"),
        (np.array([2**63], np.uint64), r"'label' holds 9223372036854775808 at row 0"),
        (np.array([0.5, np.nan]), r"'label' holds nan at row 1"),
        (np.array([np.inf, 1]), r"'label' holds inf at row 0"),
        (np.array([1e300, 1]), r"'label' holds 1e\+300 at row 0"),
        (np.array(["a", 1.5], object), r"'label' holds texts, and 1\.5 at row 1"),
        (np.array(["a", None], object), r"have no 'label'|texts, and None at row 1"),
        (np.array([1, None], object), r"have no 'label'|missing value at row 1"),
        (np.array([[1, 2], [3, 4]]), r"'label' holds integers of shape \(2, 2\)"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(UserError, match=message) as caught:
        words(labels).splits()
    assert len(str(caught.value).splitlines()) == 1


def test_words_label_texts_as_tokens():
    texts = np.array(["a", "b", "c"], object)
    labels = np.array([b"no", "yes", "no"], object)
    data = Texts(Arrays({"train": {"text": texts, "label": labels}}, **WHOLE), encoding=BPE(260))
    assert [int(x["label"]) for x in map(data.splits()["train"].__getitem__, range(3))] == [0, 1, 0]
    assert data.output_names() == ("no", "yes")
    known = data.with_fitted(json.loads(json.dumps(data.fit())))
    labels[0] = "maybe"
    with pytest.raises(UserError, match=r"label 'maybe', unknown in training"):
        known.splits()["train"][0]


def table(tmp_path, labels, name="t.csv", **options):
    path = tmp_path / name
    mark = "\t" if name.endswith("tsv") else ","
    rows = [f"text{mark}label", *(f'w{i}{mark}"{label}"' for i, label in enumerate(labels))]
    text = "\n".join(rows) + "\n"
    path.write_text(text.replace('"', "") if mark == "\t" else text)
    return TextTable(str(path), **WHOLE, **options)


@pytest.mark.parametrize(
    ("labels", "options", "expected", "names"),
    [
        (["pos", "neg", "pos"], {}, [1, 0, 1], ("neg", "pos")),
        (["10", "9", "10"], {}, [1, 0, 1], ("9", "10")),
        (["1", "5", "3"], {}, [0, 2, 1], ("1", "3", "5")),
        (["0.5", "1.75", "2"], {}, [0.5, 1.75, 2.0], ()),
        (["1.0", "2.0", "1"], {}, [0, 1, 0], ("1", "2")),
        (["1.0", "2.0", "1"], {"categorical": False}, [1.0, 2.0, 1.0], ()),
        (["0.5", "1.5", "0.5"], {"categorical": True}, [0, 1, 0], ("0.5", "1.5")),
        ([" pos", "pos ", "neg"], {}, [1, 1, 0], ("neg", "pos")),
        (["1", "2", "spam"], {}, [0, 1, 2], ("1", "2", "spam")),
        (["3000000000", "1", "1"], {}, [1, 0, 0], ("1", "3000000000")),
        (["True", "False", "True"], {}, [1, 0, 1], ("False", "True")),
        (["-0.5", "1e-3", "2"], {}, [-0.5, 0.001, 2.0], ()),
        (["none", "a", "b"], {"missing": ("",)}, [2, 0, 1], ("a", "b", "none")),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_labels_in_a_table(tmp_path, labels, options, expected, names, name):
    data = table(tmp_path, labels, name, **options)
    found = data.splits()["train"].arrays["label"]
    assert found.dtype == (np.float32 if isinstance(expected[0], float) else np.int32)
    np.testing.assert_allclose(found, expected)
    assert data.output_names() == names
    known = data.with_fitted(json.loads(json.dumps(data.fit())))
    np.testing.assert_array_equal(known.load()["train"].arrays["label"], found)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0.5", "spam"], r"t\.csv: column 'label' holds 'spam' in row 2, no number"),
        (["a", ""], r"t\.csv: column 'label' has no label in row 2"),
        (["a", "?"], r"has no label in row 2: give it one or remove the row"),
        (["nan", "1"], r"has no label in row 1"),
        (["1,5", "2,5"], r"column 'label' holds '1,5' in row 1, no number"),
        (["5%", "6%"], r"column 'label' holds '5%' in row 1, no number"),
        (["1", "1 000"], r"column 'label' holds '1 000' in row 2"),
        (["  ", "1"], r"has no label in row 1"),
        (["None", "1"], r"has no label in row 1 .*|row 1: give"),
        (["0.5", "1", "inf"], r"column 'label' holds 'inf' in row 3"),
    ],
)
def test_labels_of_a_table_that_are_none_are_refused(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, labels).load()


def test_classes_known_from_training_keep_their_numbers(tmp_path):
    data = table(tmp_path, ["pos", "neg"])
    known = data.with_fitted(data.fit())
    table(tmp_path, ["neg", "pos", "pos"])
    assert known.load()["train"].arrays["label"].tolist() == [0, 1, 1]
    table(tmp_path, ["neg", "more"])
    with pytest.raises(UserError, match=r"holds 'more' in row 2, which was not in the data"):
        known.load()
    wrapped = Words(table(tmp_path, ["pos", "neg"]), length=2)
    known = wrapped.with_fitted(json.loads(json.dumps(wrapped.fit())))
    (tmp_path / "new.tsv").write_text('text\nw1 "w0\n')
    expected = wrapped.reader()(tmp_path / "new.tsv")["tokens"]
    (tmp_path / "t.csv").unlink()
    np.testing.assert_array_equal(known.reader()(tmp_path / "new.tsv")["tokens"], expected)
    assert known.output_names() == ("neg", "pos")


def test_texts_and_tabs_are_read_row_by_row(tmp_path):
    data = table(tmp_path, ["pos", "neg"], "t.tsv")
    new = tmp_path / "new.tsv"
    new.write_text('text\tother\ngood, "very"\t1\nbad\t2\n')
    assert data.reader()(new)["text"].tolist() == ['good, "very"', "bad"]
    assert data.reader()(tmp_path / "t.tsv")["text"].tolist() == ["w0", "w1"]


def series(tmp_path, values, **options):
    path = tmp_path / "s.csv"
    path.write_text("v\n" + "".join(f"{value}\n" for value in values))
    return Series(str(path), length=3, **WHOLE, **options)


@pytest.mark.parametrize(
    ("values", "options", "new"),
    [
        ([5.0] * 20, {}, 7.0),
        ([0] * 20, {}, 1e6),
        ([14.62] * 20, {}, 14.63),
        ([-3e5] * 20, {}, 1.0),
        ([1e-9] * 20, {}, 1.0),
        (range(20), {"difference": 1}, 1e9),
        ([2.0**i for i in range(20)], {"log": True, "difference": 1}, 1e9),
        ([0.1 + 0.2] * 10 + [0.3] * 10, {}, 0.31),
        ([7] * 19 + [8], {}, 1e7),
        ([1e15] * 20, {}, 3e15),
    ],
)
def test_constant_series_stay_bounded(tmp_path, values, options, new):
    data = series(tmp_path, values, **options)
    train = data.splits()["train"]
    arrays = {name: np.stack([train[i][name] for i in range(len(train))]) for name in train[0]}
    assert np.abs(arrays["x"]).max() <= 100
    assert np.abs(arrays["y"]).max() <= 100
    level = arrays["offset"].astype(float) + arrays["scale"] * arrays["y"]
    found = np.exp(level) if data.log else level
    np.testing.assert_allclose(found, arrays["value"], rtol=1e-5, atol=1e-6)
    path = tmp_path / "new.csv"
    path.write_text("v\n" + f"{new}\n" * 8)
    assert np.abs(data.reader()(path)["x"]).max() <= 100


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("v\n1\n2\n3\n", {}, [[1], [2], [3]]),
        ("d,v\n2024-01-01,1\n2024-01-02,2\n", {}, [[1], [2]]),
        ("d,v\n2024-01-02,1\n2024-01-01,2\n", {}, r"'d' goes back in time at row 2: sort"),
        ("d;v\n2024-01-01;1,5\n2024-01-02;2,5\n", {"decimal": ","}, [[1.5], [2.5]]),
        ("d,v\nmon,1\ntue,2\n", {}, [[1], [2]]),
        ('v,w\n"1,000",5\n"2,000",6\n', {"thousands": ","}, [[1000, 5], [2000, 6]]),
        ('v\n"1,5"\n"2,5"\n', {}, r"column 'v' holds '1,5' in row 1, no number"),
        ("v\n1\n\n3\n", {}, [[1], [3]]),
        ("v,w\n1,2\n,3\n", {}, r"column 'v' holds '' in row 2, no number: .*no gaps"),
        ("v,w\n1,2\nNA,3\n", {"columns": ("v",)}, r"column 'v' holds 'NA' in row 2"),
        ("v\n1\nx\n", {}, r"column 'v' holds 'x' in row 2, no number"),
        ("d,v\n2024-01-01,1\nx,2\n", {"columns": ("v",)}, [[1], [2]]),
        ("v,v\n1,2\n3,4\n", {}, r"several columns 'v'"),
        ("20.7\n17.9\n18.8\n", {}, r"begins with numbers \(20\.7\)"),
        ("v\n1e400\n2\n", {}, r"column 'v' holds '1e400' in row 1, no finite"),
        ("v\r\n1\r\n2\r\n", {}, [[1], [2]]),
    ],
)
def test_series_as_they_come(tmp_path, text, options, expected):
    (tmp_path / "s.csv").write_text(text, newline="")
    data = Series(str(tmp_path / "s.csv"), length=1, **options)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            data.read()
        assert "s.csv" in str(caught.value)
    else:
        np.testing.assert_array_equal(data.read()[1], expected)


def test_scaling_of_a_series_is_kept(tmp_path):
    data = series(tmp_path, range(20))
    known = data.with_fitted(json.loads(json.dumps(data.fit())))
    new = tmp_path / "new.csv"
    new.write_text("v\n1\n2\n3\n")
    expected = data.reader()(new)
    series(tmp_path, range(100, 200))
    for name, array in known.reader()(new).items():
        np.testing.assert_array_equal(array, expected[name])
    assert known.splits()["train"][0]["offset"] == expected["offset"][0]
