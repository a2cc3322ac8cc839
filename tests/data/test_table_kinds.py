"""What tables hold in practice: each kind of file is read right, or refused with its place."""

import numpy as np
import pytest

from jdl.data import Table
from jdl.errors import UserError

NAN = float("nan")


def read(tmp_path, content, name="t.csv", **options):
    """Inputs and targets of a table with the target `y`, as they are."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arrays = Table(str(path), "y", **options).load()["train"].arrays
    return arrays["x"].tolist(), arrays["y"].tolist()


def check(tmp_path, content, expected, **options):
    """The inputs are those expected; a text is the pattern of a refusal that names the file."""
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            read(tmp_path, content, **options)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert "t.csv" in message or "t.tsv" in message
    else:
        np.testing.assert_allclose(read(tmp_path, content, **options)[0], expected, rtol=1e-6)


def column(*fields):
    """A table with one input `a`, quoted, and a target."""
    return "a,y\n" + "".join(f'"{field}",{row}\n' for row, field in enumerate(fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["1", "2", "3"], [[1], [2], [3]]),
        (["1", "2.5", "3"], [[1], [2.5], [3]]),
        (["", "2", "3"], [[NAN], [2], [3]]),
        (["1e3", "-2.5E-2", "+4"], [[1000], [-0.025], [4]]),
        ([" 1", "2 ", "\t3 "], [[1], [2], [3]]),
        (["b", "a", "b"], [[1], [0], [1]]),
        (["", "a", "b"], [[-1], [0], [1]]),
        (["True", "False", "True"], [[1], [0], [1]]),
        (["1", "2", "x"], r"column 'a' holds 'x' in row 3, no number: .*data\.missing"),
        (["x", "2", "3"], r"column 'a' holds '2' in row 2, among words such as 'x'"),
        (["1", "", "x"], r"holds 'x' in row 3, no number"),
        (["", "", "x", "1"], r"holds '1' in row 4, among words"),
        (["inf", "1", "2"], r"holds 'inf' in row 1, no finite number"),
        (["1e400", "1", "2"], r"holds '1e400' in row 1, no finite number"),
        (["-", "-Infinity", "2"], r"holds '-Infinity' in row 2, no finite number"),
        (["1", "2", "-inf"], r"holds '-inf' in row 3, no number"),
        (["1", "2", "1e400"], r"holds '1e400' in row 3"),
        (["1", "2", "1e39"], r"holds '1e39' in row 3, too large for float32"),
        (["1", "2", "0x10"], r"holds '0x10' in row 3, no number"),
        (["", "", ""], r"column 'a' has no value in any row"),
        (["1", "x" * 99], r"holds 'x{57}\.\.\.' in row 2, no number"),
        ([*"1" * 2000, "x"], r"holds 'x' in row 2001"),
        ([*[""] * 1500, *"ab" * 300], [*[[-1]] * 1500, *[[0], [1]] * 300]),
    ],
)
def test_all_rows_decide_what_a_column_holds(tmp_path, fields, expected):
    check(tmp_path, column(*fields), expected)


@pytest.mark.parametrize(
    "field",
    ["", "  ", "NA", "na", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?", "-", ".",
     "#N/A", "<NA>"],
)  # fmt: skip
def test_fields_without_a_value_are_missing_among_numbers_and_words(tmp_path, field):
    check(tmp_path, column("1", field, "3"), [[1], [NAN], [3]])
    check(tmp_path, column(field, "b", "a"), [[-1], [1], [0]])
    with pytest.raises(UserError, match="column 'y' has no label in row 2"):
        read(tmp_path, f'a,y\n1,2\n3,"{field}"\n5,6\n')


def test_what_counts_as_missing_can_be_declared(tmp_path):
    check(tmp_path, column("1", "-999", "3"), [[1], [NAN], [3]], missing=("", "-999"))
    check(tmp_path, column("none", "low", "none"), [[1], [0], [1]], missing=("",))
    check(tmp_path, column("1", "NA", "3"), "holds 'NA' in row 2, no number", missing=("",))


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (["1,5", "2,25"], {}, r"holds '1,5' in row 1, no number \(data\.decimal"),
        (["1,500", "2,250"], {}, r"holds '1,500' in row 1, no number \(data\.decimal"),
        (["1", "1,500"], {}, r"holds '1,500' in row 2, no number"),
        (["1,5", "2,25"], {"decimal": ","}, [[1.5], [2.25]]),
        (["1,500", "22,250.5"], {"thousands": ","}, [[1500], [22250.5]]),
        (["1.500", "2.250,5"], {"decimal": ",", "thousands": "."}, [[1500], [2250.5]]),
        (["1'500", "-12'345'678"], {"thousands": "'"}, [[1500], [-12345678]]),
        (["1 500", "2"], {"thousands": " "}, [[1500], [2]]),
        (["1,5", "2"], {"thousands": ","}, r"holds '2' in row 2, among words|'1,5' in row 1"),
        (["1", "12,34"], {"thousands": ","}, r"holds '12,34' in row 2, no number"),
        (["1", "1,2345"], {"thousands": ","}, r"holds '1,2345' in row 2, no number"),
        (["1,5", "2.5"], {"decimal": ","}, r"holds '2\.5' in row 2, no number"),
        (["1,5e3", ",5"], {"decimal": ","}, [[1500], [0.5]]),
        (["1,5", "NA"], {"decimal": ","}, [[1.5], [NAN]]),
        (["$5", "$7"], {}, r"holds '\$5' in row 1, no number"),
        (["5%", "7%"], {}, r"holds '5%' in row 1, no number"),
        (["5 €", "7 €"], {}, r"holds '5 €' in row 1, no number"),
        (["1.234.567", "2"], {}, r"holds '1\.234\.567' in row 1"),
        (["(5)", "(7)"], {}, r"holds '\(5\)' in row 1, no number"),
        (["\u22125", "7"], {}, r"row 1, no number"),
        (["1_000", "2"], {}, [[1000], [2]]),
        (["5 kg", "6 kg"], {}, r"holds '5 kg' in row 1, no number"),
        (["10k", "2k"], {}, r"holds '10k' in row 1, no number"),
        (["1.5GB", "2GB"], {}, r"holds '1\.5GB' in row 1, no number"),
        (["1/2", "3/4"], {}, r"holds '1/2' in row 1, no number"),
        (["[1, 2]", "[3, 4]"], {}, r"holds '\[1, 2\]' in row 1, no number"),
        (["1+2j", "2-1j"], {}, r"holds '1\+2j' in row 1, no number"),
        (["'1'", "'2'"], {}, r"holds \"'1'\" in row 1, no number"),
        (["-$5", "$7"], {}, r"holds '-\$5' in row 1, no number"),
        (["18-25", "26+"], {}, [[0], [1]]),
        (["1st", "2nd"], {}, [[0], [1]]),
        (["5A", "12B"], {}, [[1], [0]]),
        (["5 kg", "6 kg"], {"categories": ("a",)}, [[0], [1]]),
    ],
)
def test_numbers_in_other_notations_are_declared_or_refused(tmp_path, fields, options, expected):
    check(tmp_path, column(*fields), expected, **options)


@pytest.mark.parametrize("options", [{"decimal": ""}, {"thousands": "."}, {"decimal": ".,"}])
def test_impossible_notations_are_refused(options):
    with pytest.raises(UserError, match=r"data\.decimal .* and data\.thousands"):
        Table("t.csv", "y", **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b,y\n1,2,3\n4,5,6\n", [[1, 2], [4, 5]]),
        ("a;b;y\n1;2;3\n4;5;6\n", [[1, 2], [4, 5]]),
        ("a\tb\ty\n1\t2\t3\n4\t5\t6\n", [[1, 2], [4, 5]]),
        ("a|b|y\n1|2|3\n4|5|6\n", [[1, 2], [4, 5]]),
        ("a, b, y\n1, 2, 3\n4, 5, 6\n", [[1, 2], [4, 5]]),
        (' a , b,"y"\n 1 , 2,3\n4,5 ,6\n', [[1, 2], [4, 5]]),
        ('"a;1","b",y\n1,2,3\n4,5,6\n', [[1, 2], [4, 5]]),
        ('a,b,y\n"1","2","3"\n"4","5","6"\n', [[1, 2], [4, 5]]),
        ('a,b,y\n1, "2",3\n4, "5",6\n', [[1, 2], [4, 5]]),
        ("a,b,y\r\n1,2,3\r\n4,5,6\r\n", [[1, 2], [4, 5]]),
        ("a,b,y\r1,2,3\r4,5,6\r", [[1, 2], [4, 5]]),
        ("\n\na,b,y\n\n1,2,3\n\n4,5,6\n\n\n", [[1, 2], [4, 5]]),
        ("a,b,y\n1,2,3\n4,5,6", [[1, 2], [4, 5]]),
        ("\ufeffa,b,y\n1,2,3\n4,5,6\n", [[1, 2], [4, 5]]),
        ('\ufeff"a",b,y\n1,2,3\n4,5,6\n', [[1, 2], [4, 5]]),
        ("a,b,y\n1,2,3\n4,5,6\n".encode("utf-16"), [[1, 2], [4, 5]]),
        ("a;b;y\r\n1;2;3\r\n4;5;6\r\n".encode("utf-16"), [[1, 2], [4, 5]]),
        ("größe,b,y\n1,2,3\n4,5,6\n", [[1, 2], [4, 5]]),
        ("größe,b,y\n1,2,3\n".encode("latin-1"), r"line 1 holds the byte 0xf6, which is not UTF-8"),
        ("a,b,y\n1,2,3\n1,é,3\n".encode("cp1252"), r"line 3 holds the byte 0xe9.*save the file as"),
        ("a,b,y\n", "no rows below a header"),
        ("", "no rows below a header"),
        ("\n\n", "no rows below a header"),
    ],
)
def test_separators_line_ends_and_encodings(tmp_path, content, expected):
    check(tmp_path, content, expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a,n,y\n1,"x\ny",3\n4,z,6\n', [[1, 0], [4, 1]]),
        ('a,n,y\r\n1,"x\r\ny",3\r\n4,z,6\r\n', [[1, 0], [4, 1]]),
        ('a,n,y\n1,"x, y",3\n4,z,6\n', [[1, 0], [4, 1]]),
        ('a,n,y\n1,"say ""x""",3\n4,z,6\n', [[1, 0], [4, 1]]),
        ('a,n,y\n1,5" disk,3\n4,z,6\n', [[1, 0], [4, 1]]),
        ('a,"n\nm",y\n1,x,3\n4,z,6\n', [[1, 0], [4, 1]]),
        ("a,n,y\n1," + "x" * 200_000 + ",3\n4,z,6\n", [[1, 0], [4, 1]]),
        ('a,n,y\n1,"' + "x,\n" * 100_000 + '",3\n4,z,6\n', [[1, 0], [4, 1]]),
        ('a,n,y\n1,"x,3\n4,z,6\n', r"cannot be read after line 1: .*close the quote"),
        ('a,n,y\n1,u,3\n1,"x,3\n4,z,6\n', r"cannot be read after line 2"),
        ('a,n,y\n1,"x"y,3\n4,z,6\n', r"cannot be read after line 1"),
        ("a,n,y\n1,x, y,3\n", r"line 2: 4 fields, where the header has 3 .*quote a field"),
        ("a,n,y\n1,x,3\n4,5\n", r"line 3: 2 fields, where the header has 3 \(4,5\): complete"),
        ("a,n,y\n1,x,3\n4,z,6,\n", r"line 3: 4 fields, where the header has 3"),
        ('a,n,y\n1,"x\ny",3\n4,5\n', r"line 4: 2 fields"),
        ("a,n,y\n1,x,3\n   \n", r"line 3: 1 fields"),
        ("a;n;y\n1;x;3\n4;5\n", r"line 3: 2 fields, where the header has 3 \(4;5\)"),
    ],
)  # fmt: skip
def test_quoted_long_and_ragged_rows(tmp_path, content, expected):
    check(tmp_path, content, expected)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a,a,y", r"several columns 'a' \(the columns 1 and 2\): rename or remove all but one"),
        ("y,a,y", r"several columns 'y' \(the columns 1 and 3\)"),
        ("a, a,y", r"several columns 'a' \(the columns 1 and 2\)"),
        ('a,"a",y', r"several columns 'a'"),
        ("A,a,y", [[1, 2], [4, 5]]),
        (",a,y", r"column 0 has no name, .*name the inputs in data\.columns"),
        ("a,,y", r"column 1 has no name"),
        ("Unnamed: 0,a,y", r"column 0 has no name"),
        ("a,  ,y", r"column 1 has no name"),
        ("1.5,2.5,3.5", r"begins with numbers \(1\.5, 2\.5, 3\.5\), .*add a first row of names"),
        ("7,8,9", r"begins with numbers"),
        ("-1,-2,-3", r"begins with numbers"),
        ("a,b,c", r"no column 'y' \(it has 'a', 'b', 'c'\)"),
        ("a,b,Y", r"no column 'y' .*did you mean 'Y'"),
        ("a,b,y ", [[1, 2], [4, 5]]),
    ],
)
def test_names_of_columns(tmp_path, header, expected):
    check(tmp_path, f"{header}\n1,2,3\n4,5,6\n", expected)


def test_columns_may_be_numbered(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0,1,2\n1,2,3\n4,5,6\n")
    assert Table(str(path), "2").load()["train"].arrays["x"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["1970-01-02", "1970-01-11"], [[1], [10]]),
        (["1970-01-02 12:00", "1970-01-03T06:00:00"], [[1.5], [2.25]]),
        (["1970-01-02T00:00:00Z", "1970-01-02T01:00:00+01:00"], [[1], [1]]),
        (["1969-12-31", "NA"], [[-1], [NAN]]),
        (["2024-02-29", "2023-02-28"], [[19782], [19416]]),
        (["1970-01-01T00:00:00.864", "1970-01-01 00:00:00,864"], [[1e-5], [1e-5]]),
        (["2023-02-29", "2023-02-28"], r"holds '2023-02-29' in row 1, no date"),
        (["2023-01-01", "soon"], r"holds 'soon' in row 2, no date"),
        (["2023-01-01", "2023-01-02T00:00:00Z"], r"holds '2023-01-02T00:00:00Z' in row 2"),
        (["01/02/2024", "03/04/2024"], r"holds '01/02/2024' in row 1, which may be a date"),
        (["1.2.2024", "3.4.2024"], r"holds '1\.2\.2024' in row 1"),
        (["2024/01/05", "2024/01/06"], r"which may be a date or a time \(those are YYYY-MM-DD"),
        (["12:30", "13:00"], r"holds '12:30' in row 1, which may be a date or a time"),
        (["5-1-2024", "6-1-2024"], r"which may be a date"),
        (["2024-01-05", "5"], r"holds '5' in row 2, no date"),
        (["20240105", "20240106"], [[20240105], [20240106]]),
        (["2024-01", "2024-02"], r"holds '2024-01' in row 1, which may be a date"),
        (["2024-W01", "2024-W02"], r"holds '2024-W01' in row 1, which may be a date"),
        (["20240101T0000", "20240102T0000"], r"holds '20240101T0000' in row 1, which may be"),
        (["May 2024", "June 2024"], r"holds 'May 2024' in row 1, which may be a date"),
        (["1990-91", "1991-92"], [[0], [1]]),
        (["5 Jan 2024", "6 Jan 2024"], r"holds '5 Jan 2024' in row 1, which may be a date"),
        (["Jan 5, 2024", "Jan 6, 2024"], r"holds 'Jan 5, 2024' in row 1, which may be a date"),
    ],
)
def test_dates(tmp_path, fields, expected):
    check(tmp_path, column(*fields), expected)


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (["1", "2", "3"], {}, [1.0, 2.0, 3.0]),
        (["1.5", "-2", "3e2"], {}, [1.5, -2.0, 300.0]),
        (["b", "a", "b"], {}, [1, 0, 1]),
        ([" b", "b ", "a"], {}, [1, 1, 0]),
        (["True", "False", "True"], {}, [1, 0, 1]),
        (["10", "9", "10"], {"categorical": True}, [1, 0, 1]),
        (["1", "1.0", "2"], {"categorical": True}, [0, 0, 1]),
        (["01", "1", "2"], {"categorical": True}, [0, 1, 2]),
        (["2023-01-01", "2023-01-02", "2023-01-01"], {"categorical": True}, [0, 1, 0]),
        (["1", "2", "x"], {}, r"column 'y' holds 'x' in row 3, no number.*set data\.categorical"),
        (["x", "2", "3"], {}, r"column 'y' holds '2' in row 2, among words"),
        (["a", "b", "a"], {"categorical": False}, r"column 'y' holds 'a' in row 1, no number"),
        (["1,5", "2,5", "3"], {}, r"column 'y' holds '1,5' in row 1, no number"),
        (["1", "", "3"], {}, r"column 'y' has no label in row 2: give it one or remove the row"),
        (["a", "?", "b"], {}, r"column 'y' has no label in row 2"),
        (["2023-01-01", "2023-01-02", "2023-01-03"], {}, r"column 'y' holds dates"),
        (["1700000000.1", "1700000000.2", "1700000000.3"], {}, r"float32 cannot tell apart"),
        (["5%", "6%", "7%"], {}, r"column 'y' holds '5%' in row 1"),
        (["1e39", "2", "3"], {}, r"column 'y' holds '1e39' in row 1, too large for float32"),
        (["1", "2", "1e400"], {}, r"column 'y' holds '1e400' in row 3"),
    ],
)
def test_targets(tmp_path, fields, options, expected):
    content = "a,y\n" + "".join(f'{row},"{field}"\n' for row, field in enumerate(fields))
    if isinstance(expected, str):
        check(tmp_path, content, expected, **options)
    else:
        found = read(tmp_path, content, **options)[1]
        assert found == expected
        assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("a", "y")}, r"data\.columns holds 'y', which is data\.target"),
        ({"keep": ("y",)}, r"data\.keep holds 'y', which is data\.target"),
        ({"split_column": "a", "keep": ("a",)}, r"data\.split_column is 'a', as data\.keep"),
        ({"columns": ("a",), "group": "a"}, r"data\.columns holds 'a', which is data\.group"),
        ({"group": "y"}, r"data\.group and data\.target are both 'y'"),
        ({"keep": ("x",)}, r"data\.keep holds 'x', which a batch has"),
        ({"keep": ("mask",)}, r"data\.keep holds 'mask'"),
        ({"stratify": True, "group": "g"}, r"data\.stratify and data\.group exclude each other"),
        ({"stratify": True, "ordered": True}, r"data\.stratify and data\.ordered exclude"),
        ({"columns": ("aa",)}, r"t\.csv has no column 'aa' .*did you mean 'a'"),
        ({"keep": ("sx",)}, r"t\.csv has no column 'sx'"),
        ({"group": "patients"}, r"t\.csv has no column 'patients'"),
        ({"categories": ("kind",)}, r"t\.csv has no column 'kind'"),
        ({"columns": ("a", "a")}, r"data\.columns holds 'a' twice"),
        ({"delimiter": ";;"}, r"data\.delimiter must be one character"),
        ({"delimiter": '"'}, r"data\.delimiter must be one character"),
    ],
)
def test_columns_have_one_part_to_play(tmp_path, options, message):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n1,2,3\n4,5,6\n")
    with pytest.raises(UserError, match=message):
        Table(str(path), "y", **options).load()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\ty\n1\t2\n", [[1]]),
        ('"a"\t"y"\n"1"\t"2"\n', [[1]]),
        ('"a"\t"y"\n"x\ty"\t2\n', [[0]]),
        ('a\ty\n5" disk\t2\n', [[0]]),
        ('a\ty\n"x\t2\n', [[0]]),
        ("a\ty\r\n1\t2\r\n", [[1]]),
        ("a\tb,c\ty\n1\t2,3\t4\n", r"column 'b,c' holds '2,3' in row 1, no number"),
        ("a\ty\n1\t2\t3\n", r"line 2: 3 fields, where the header has 2"),
        ("a,y\n1,2\n", r"no column 'y' \(it has 'a,y'\)"),
        ("a\t\ty\n1\t2\t3\n", r"column 1 has no name"),
        ("a\ty\n\t2\n3\t4\n", [[NAN], [3]]),
    ],
)
def test_tab_separated_files(tmp_path, content, expected):
    check(tmp_path, content, expected, name="t.tsv")
