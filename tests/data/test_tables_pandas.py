"""Generated tables are read as pandas reads them."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import PairTable, Series, Table, TextTable
from jdl.data.notation import MISSING
from jdl.errors import UserError

pandas = pytest.importorskip("pandas")

COUNTER = itertools.count()
COUNTS = [100, pytest.param(1000, marks=pytest.mark.slow)]


def generated(count, **strategies):
    """Runs a check on examples of strategies."""

    def run(check):
        settings(max_examples=count, deadline=None, database=None)(given(**strategies)(check))()

    return run


numbers = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6, allow_nan=False, width=32),
    st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=False),
)
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z", "N", "P")), min_size=1, max_size=8
).filter(lambda text: text.lower() not in (*MISSING, "inf", "infinity"))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), min_size=1)
formats = st.fixed_dictionaries(
    {
        "sep": st.sampled_from([",", ";", "\t", "|"]),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        "na_rep": st.sampled_from(["", "NA", "nan", "?", "N/A", "NULL"]),
    }
)


@st.composite
def frames(draw):
    """Columns of numbers and words with gaps, a target and how they are written."""
    rows = draw(st.integers(1, 6))
    columns = {}
    for index in range(draw(st.integers(1, 4))):
        values = draw(st.sampled_from([numbers, words]))
        fields = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        if all(field is None for field in fields):
            fields[0] = draw(values)
        columns[f"c{index}"] = fields
    kind = draw(st.sampled_from([numbers, words]))
    columns["y"] = draw(st.lists(kind, min_size=rows, max_size=rows))
    order = draw(st.permutations(list(columns)))
    return pandas.DataFrame({name: pandas.Series(columns[name], dtype=object) for name in order})


def written(folder: Path, frame, form, suffix=".csv"):
    path = folder / f"{next(COUNTER)}{suffix}"
    form = dict(form)
    with path.open("w", newline="", encoding=form.pop("encoding")) as file:
        frame.to_csv(file, index=False, **form)
    return path


def check_table(folder, frame, form):
    path = written(folder, frame, form)
    known = pandas.read_csv(
        path,
        sep=form["sep"],
        encoding=form["encoding"],
        na_values=["?"],
    )
    data = Table(str(path), "y", missing=("", "na", "nan", "?", "n/a", "null"))
    values = known["y"]
    if values.dtype.kind in "if" and np.abs(values).max() * 1.2e-7 > 1e-3 * values.std(ddof=0) > 0:
        with pytest.raises(UserError, match="float32 cannot tell apart"):
            data.load()
        return
    arrays = data.load()["train"].arrays
    inputs = [name for name in frame if name != "y"]
    for name, found in zip(inputs, arrays["x"].T, strict=True):
        compare(known[name], found)
    compare(known["y"], arrays["y"])


def compare(column, found):
    """A column of pandas is one of numbers, or of the places of sorted words."""
    if column.dtype.kind in "ifb":
        np.testing.assert_allclose(found, column.to_numpy(float), rtol=1e-5, atol=1e-30)
    else:
        names = sorted(set(column.dropna()))
        assert found.tolist() == [-1 if v != v else names.index(v) for v in column]


@pytest.mark.parametrize("count", COUNTS)
def test_tables(tmp_path, count):
    @generated(count, frame=frames(), form=formats)
    def check(frame, form):
        check_table(tmp_path, frame, form)


@pytest.mark.parametrize("count", COUNTS)
def test_labeled_texts(tmp_path, count):
    rows = st.lists(st.tuples(texts, words), min_size=1, max_size=5)

    @generated(count, rows=rows, form=formats)
    def check(rows, form):
        path = written(tmp_path, pandas.DataFrame(rows, columns=["text", "label"]), form)
        known = pandas.read_csv(
            path, sep=form["sep"], encoding=form["encoding"], keep_default_na=False, dtype=str
        )
        data = TextTable(str(path))
        found = data.load()["train"].arrays
        assert found["text"].tolist() == known["text"].tolist()
        names = data.output_names()
        assert [names[code] for code in found["label"]] == known["label"].str.strip().tolist()
        assert data.reader()(path)["text"].tolist() == known["text"].tolist()


@pytest.mark.parametrize("count", COUNTS)
def test_tab_separated_pairs(tmp_path, count):
    plain = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\t\ufeff"), min_size=1)
    rows = st.lists(st.tuples(plain, plain), min_size=1, max_size=5)

    @generated(count, rows=rows)
    def check(rows):
        path = tmp_path / f"{next(COUNTER)}.tsv"
        path.write_text("".join(f"{a}\t{b}\n" for a, b in [("en", "de"), *rows]), newline="")
        known = pandas.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, dtype=str
        )
        found = PairTable(str(path)).load()["train"].arrays
        for name in ("en", "de"):
            assert found[name].tolist() == known[name].tolist()


@pytest.mark.parametrize("count", COUNTS)
def test_series(tmp_path, count):
    values = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8)

    @generated(count, values=values, form=formats, dated=st.booleans())
    def check(values, form, dated):
        frame = pandas.DataFrame(values, columns=["a", "b"])
        if dated:
            frame.insert(0, "day", pandas.date_range("2024-02-27", periods=len(frame)))
        path = written(tmp_path, frame, form)
        known = pandas.read_csv(path, sep=form["sep"], encoding=form["encoding"])
        names, found = Series(str(path)).read()
        assert names == ["a", "b"]
        np.testing.assert_allclose(found, known[names].to_numpy(float), rtol=1e-14)
