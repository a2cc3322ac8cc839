"""Inputs of a table are scaled, filled and one-hot by the training rows, in new files as well."""

import csv
import json
import logging
import re

import numpy as np
import pytest

from jdl.data import Table, TextTable
from jdl.data.sources import root_indices
from jdl.errors import UserError

WHOLE = {"test_fraction": 0.0, "validation_fraction": 0.0}


def write(path, columns):
    """Writes columns by name."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    return path


def stack(source):
    return {name: np.stack([source[i][name] for i in range(len(source))]) for name in source[0]}


def inputs(tmp_path, fields, **options):
    """The inputs of a table of one column, trained on as a whole."""
    path = write(tmp_path / "t.csv", {"a": fields, "y": range(len(fields))})
    return Table(str(path), "y", **WHOLE, **options).splits()["train"].arrays["x"]


def test_words_are_one_hot_and_gaps_are_filled(tmp_path):
    path = write(
        tmp_path / "t.csv",
        {"age": ["20", "", "40", "90"], "sex": ["m", "f", "?", "f"], "y": [0, 1, 0, 1]},
    )
    table = Table(str(path), "y", **WHOLE)
    known = np.array([20, 40, 90])
    filled = (np.array([20, 40, 40, 90]) - known.mean()) / known.std()
    expected = [filled, [0, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_allclose(table.splits()["train"].arrays["x"], np.transpose(expected), 1e-6)
    age, sex = table.fit()["features"]
    assert (age["median"], age["has_missing"], sex["words"]) == (40, True, ["f", "m"])


def test_only_training_rows_are_fitted(tmp_path):
    generator = np.random.default_rng(0)
    count = 60
    numbers, words = generator.normal(size=count), generator.choice(["a", "b"], count)
    path = write(tmp_path / "t.csv", {"n": numbers, "w": words, "y": range(count)})
    table = Table(str(path), "y")
    test = root_indices(table.splits()["test"])
    before = table.fit()
    changed = {"n": numbers.astype(object), "w": words.astype(object), "y": range(count)}
    changed["n"][test] = [*["NA"] * 6, *[1e6] * (len(test) - 6)]
    changed["w"][test] = "new"
    write(tmp_path / "t.csv", changed)
    assert table.fit() == before
    np.testing.assert_array_equal(stack(table.splits()["test"])["x"][:6, 1:], 0)
    known = numbers[root_indices(table.splits()["train"])]
    median = (np.median(known) - known.mean()) / known.std()
    np.testing.assert_allclose(stack(table.splits()["test"])["x"][:6, 0], median, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "new"),
    [
        ([14.62] * 1000, 14.63),
        ([0] * 50, 1e6),
        ([5e6] * 50, 6e6),
        ([-1e-8] * 50, 3.0),
        ([0.1 + 0.2] * 25 + [0.3] * 25, 0.31),
        ([1e15 + 0.125 * (i % 2) for i in range(50)], 2e15),
        ([14.62] * 999 + [14.63], 15.0),
        ([0] * 9999 + [1], 1e9),
        ([1e-300] * 20, 1.0),
        ([7] * 20 + ["NA"] * 20, 1e30),
    ],
)
def test_constant_and_nearly_constant_columns_stay_bounded(tmp_path, fields, new):
    x = inputs(tmp_path, fields)
    assert np.abs(x).max() <= 100
    path = tmp_path / "new.csv"
    path.write_text(f"a\n{new}\n{-new}\n")
    found = Table(str(tmp_path / "t.csv"), "y", **WHOLE).reader()(path)["x"]
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 100


@pytest.mark.parametrize(
    "fields",
    [
        1.7e9 + 60 * np.arange(50),  # seconds of an hour
        np.linspace(1e12, 1e12 + 1e5, 50),
        np.arange(50) * 1e-12,
        np.arange(50) * 1e30,
        np.concatenate([[1e9], np.arange(49)]),
        np.arange(2000) % 7 + 2020,
        np.exp(np.random.default_rng(0).normal(size=50) * 3),
        -np.arange(50) / 3,
        np.array([0.0, 1.0]),
        1e8 + np.arange(3000),  # several chunks
    ],
    ids=str,
)
def test_scaling_keeps_the_digits_that_differ(tmp_path, fields):
    x = inputs(tmp_path, [repr(float(v)) for v in fields])
    np.testing.assert_allclose(x[:, 0], (fields - fields.mean()) / fields.std(), atol=2e-5)


def test_codes_can_be_words_and_words_too_many(tmp_path):
    codes = ["1", "2", "3", "1"]
    assert inputs(tmp_path, codes).shape == (4, 1)
    assert inputs(tmp_path, codes, categories=("a",)).tolist() == [
        [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]
    ]  # fmt: skip
    mixed = inputs(tmp_path, ["A1", "12", "5%", "2024-01-01"], categories=("a",))
    np.testing.assert_array_equal(mixed.sum(1), 1)
    names = [f"name {i}" for i in range(101)]
    with pytest.raises(UserError, match=r"t\.csv: column 'a' holds more than .* 100 different"):
        inputs(tmp_path, names)
    assert inputs(tmp_path, names, max_categories=101).shape == (101, 101)


def test_kept_columns_are_carried_and_are_no_inputs(tmp_path):
    path = write(
        tmp_path / "t.csv",
        {"sex": ["m", "f", "", "f"], "age": [1, 2, 3, 4.5], "a": [1, 2, 3, 4], "y": [0, 1, 0, 1]},
    )
    table = Table(str(path), "y", keep=("sex", "age"), **WHOLE)
    arrays = table.splits()["train"].arrays
    assert arrays["x"].shape == (4, 1)
    assert arrays["sex"].tolist() == [1, 0, -1, 0]
    assert arrays["age"].tolist() == [1, 2, 3, 4.5]
    assert arrays["sex"].dtype == np.int32
    assert table.fit()["keep"] == {"sex": ["f", "m"]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["123456789", "123456788"], [123456789, 123456788]),
        (["-2147483647", "0"], [-2147483647, 0]),
        (["1", ""], [1, np.nan]),
        (["0.5", "2"], [0.5, 2]),
        (["A/5 2", "12"], [1, 0]),
        (["5 kg", "1,5"], [1, 0]),
        (["2024-01-01", ""], [0, -1]),
        (["3000000000", "3000000001"], r"'k' holds 3000000001 in row 2, which 32 bits cannot hold"),
        (["123456789", ""], r"'k' holds 123456789 in row 1, which 32 bits cannot"),
    ],
)
def test_kept_numbers_lose_no_digit(tmp_path, fields, expected):
    path = write(tmp_path / "t.csv", {"k": fields, "a": [1, 2], "y": [0, 1]})
    table = Table(str(path), "y", keep=("k",), **WHOLE)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            table.splits()
    else:
        np.testing.assert_array_equal(table.splits()["train"].arrays["k"], expected)


@pytest.mark.parametrize("kind", [Table, TextTable])
def test_groups_are_never_in_two_splits(tmp_path, kind):
    generator = np.random.default_rng(0)
    patients = [f"p{i}" for i in generator.integers(0, 40, 400)]
    columns = {"patient": patients, "a": range(400), "y": generator.choice(["no", "yes"], 400)}
    path = write(tmp_path / "t.csv", columns)
    data = (
        Table(str(path), "y", group="patient")
        if kind is Table
        else TextTable(str(path), text_column="a", label_column="y", group="patient")
    )
    splits = data.splits()
    groups = [{patients[i] for i in root_indices(source)} for source in splits.values()]
    assert sum(map(len, splits.values())) == 400
    assert sum(map(len, groups)) == len(set(patients))
    assert 60 <= len(splits["test"]) <= 100
    assert "patient" not in splits["train"][0]
    other = data.__class__(**{**vars(data), "split_seed": 1}).splits()
    assert {patients[i] for i in root_indices(other["test"])} != groups[1]


def test_classes_are_held_out_alike(tmp_path):
    labels = ["rare"] * 10 + ["some"] * 90 + ["many"] * 300 + ["one"]
    path = write(tmp_path / "t.csv", {"a": range(401), "y": labels})
    splits = {name: stack(s)["y"] for name, s in Table(str(path), "y").splits().items()}
    counts = {name: np.bincount(y, minlength=4).tolist() for name, y in splits.items()}
    many, one, rare, some = np.transpose([counts["train"], counts["validation"], counts["test"]])
    assert counts["test"] == [60, 0, 2, 18]
    assert counts["train"][1] == 1
    assert (many.sum(), one.sum(), rare.sum(), some.sum()) == (300, 1, 10, 90)
    plain = Table(str(path), "y", stratify=False).splits()
    assert {n: len(s) for n, s in plain.items()} == {n: len(y) for n, y in splits.items()}
    real = write(tmp_path / "r.csv", {"a": range(50), "y": np.arange(50) / 2})
    assert len(Table(str(real), "y").splits()["test"]) == 10
    with pytest.raises(UserError, match=r"data\.stratify needs classes"):
        Table(str(real), "y", stratify=True).splits()


TRAINED = {
    "n": ["1", "2", "3", "4"],
    "gap": ["1", "", "3", "4"],
    "w": ["u", "v", "u", "v"],
    "when": ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"],
    "y": ["no", "yes", "no", "yes"],
}


@pytest.fixture
def table(tmp_path):
    return Table(str(write(tmp_path / "t.csv", TRAINED)), "y", **WHOLE)


def test_a_new_file_is_read_as_in_training(table, tmp_path):
    x = table.splits()["train"].arrays["x"]
    columns = {name: TRAINED[name][::-1] for name in ("when", "w", "gap", "n")}
    new = write(tmp_path / "new.csv", {"other": range(4), **columns})
    np.testing.assert_array_equal(table.reader()(new)["x"], x[::-1])
    tabs = tmp_path / "new.tsv"
    tabs.write_text((tmp_path / "new.csv").read_text().replace(",", "\t"))
    np.testing.assert_array_equal(table.reader()(tabs)["x"], x[::-1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"n": "x"}, r"new\.csv: column 'n' holds 'x' in row 2, no number"),
        ({"n": "1,5"}, r"column 'n' holds '1,5' in row 2, no number"),
        ({"n": "inf"}, r"column 'n' holds 'inf' in row 2"),
        ({"gap": "2024-01-01"}, r"column 'gap' holds '2024-01-01' in row 2, no number"),
        ({"when": "soon"}, r"column 'when' holds 'soon' in row 2, no date"),
        ({"when": "5"}, r"column 'when' holds '5' in row 2, no date"),
        ({"n": None}, r"new\.csv has no column 'n'"),
        ({"w": None}, r"new\.csv has no column 'w'"),
        ({"when": None}, r"new\.csv has no column 'when'"),
        ({"n": "1e300"}, r"column 'n' holds '1e300' in row 2, too large"),
    ],
)
def test_a_new_file_with_wrong_fields_is_refused(table, tmp_path, row, message):
    columns = {name: [TRAINED[name][0], row.get(name, TRAINED[name][1])] for name in TRAINED}
    new = write(tmp_path / "new.csv", {n: c for n, c in columns.items() if c[1] is not None})
    with pytest.raises(UserError, match=message) as caught:
        table.reader()(new)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "message", "expected"),
    [
        ({"w": "z"}, r"column 'w' holds 'z' in row 2, which no training row has", {3: 0, 4: 0}),
        ({"w": ""}, r"column 'w' holds no value in row 2", {3: 0, 4: 0}),
        ({"w": "U"}, r"column 'w' holds 'U' in row 2", {3: 0, 4: 0}),
        ({"n": ""}, r"column 'n' holds no value in row 2, .*it is the median", {0: 0}),
        ({"n": "1e9"}, r"column 'n' holds 1e\+09 in row 2, more than 100 standard", {0: 100}),
        ({"when": "NA"}, r"column 'when' holds no value in row 2", {5: 0}),
        ({"gap": ""}, None, {2: 1}),
    ],
)
def test_what_training_never_saw_is_logged(table, tmp_path, caplog, row, message, expected):
    columns = {name: [TRAINED[name][0], row.get(name, TRAINED[name][1])] for name in TRAINED}
    new = write(tmp_path / "new.csv", columns)
    with caplog.at_level(logging.WARNING):
        x = table.reader()(new)["x"]
    assert len(caplog.messages) == (message is not None)
    for line in caplog.messages:
        assert line.startswith(str(new))
        assert re.search(message, line)
    assert [float(x[1, place]) for place in expected] == list(expected.values())


def test_what_was_fitted_survives_json_and_the_file(table, tmp_path):
    before = table.splits()["train"].arrays
    known = table.with_fitted(json.loads(json.dumps(table.fit())))
    read, new = table.reader(), write(tmp_path / "new.csv", TRAINED)
    grown = {name: [*["9", "8", "v", "2030-01-01", "yes"][i : i + 1] * 50, *fields]
             for i, (name, fields) in enumerate(TRAINED.items())}  # fmt: skip
    write(tmp_path / "t.csv", grown)
    np.testing.assert_array_equal(known.splits()["train"].arrays["x"][50:], before["x"])
    np.testing.assert_array_equal(known.splits()["train"].arrays["y"][50:], before["y"])
    (tmp_path / "t.csv").unlink()
    np.testing.assert_array_equal(known.reader()(new)["x"], read(new)["x"])
    assert known.output_names() == ("no", "yes")
    write(tmp_path / "t.csv", {**TRAINED, "y": ["no", "yes", "perhaps", "no"]})
    with pytest.raises(UserError, match=r"column 'y' holds 'perhaps' in row 3, which was not in"):
        known.splits()
