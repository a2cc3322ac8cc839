"""Readers of user files, with errors that name the location."""

import collections
import csv
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jdl.errors import UserError, first_line, nearest

TABULAR = (".csv", ".tsv")
"""Suffixes of files with a row per example."""

DELIMITERS = ",;\t|"
"""Tried in this order on the first line of a file."""


def csv_rows(
    path: str | Path, delimiter: str | None = None, skip_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the last line and the fields of each row, the header first.

    Blank lines are left out. Quoted fields may contain line ends. Files called `.tsv` are split at
    tabs, and quotes in them are ordinary characters unless the header is quoted.

    Args:
      path: the file: UTF-8, or UTF-16 with a byte order mark.
      delimiter: between fields; None for the first of `DELIMITERS` in the first line.
      skip_blanks: drop blanks behind a delimiter, as is always done if the header has them.

    Raises:
      UserError: it cannot be read, has no rows, has two columns of one name, or a row is longer or
        shorter than the header.
    """
    file = Path(path).expanduser()
    # The module's limit is one for the whole process; no one gains from a lower one.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    line = count = 0
    names: list[str] = []
    try:
        with file.open(newline="", encoding=_encoding(file)) as stream:
            first = next((text for text in stream if text.strip()), "")
            form = _form(file, first, delimiter, skip_blanks)
            stream.seek(0)
            reader = csv.reader(stream, strict=True, **form)
            for row in filter(None, reader):
                line = reader.line_num
                if not names:
                    names = row = check_header(file, row)
                elif len(row) != len(names):
                    raise UserError(_ragged(file, line, row, names, form["delimiter"]))
                count += 1
                yield line, row
    except csv.Error as error:
        raise UserError(
            f"{file} cannot be read after line {line}: {first_line(error)}: close the quote that "
            f"begins there, and double quotes within quoted fields"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(file, error)) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error
    if count < 2:
        raise UserError(f"{file} holds no rows below a header: its first row must name the columns")


def read_header(path: str | Path, delimiter: str | None = None) -> list[str]:
    """Returns the names of the columns of a CSV file; raises as `csv_rows` does."""
    header, _ = itertools.islice(csv_rows(path, delimiter), 2)
    return header[1]


def most_rows(path: str | Path) -> int:
    """Returns the number of line ends of a file: no CSV file has more rows below its header.

    Raises:
      UserError: it cannot be read.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            blocks = iter(functools.partial(stream.read, 1 << 20), b"")
            return sum(block.count(b"\n") + block.count(b"\r") for block in blocks)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error


def check_header(file: Path, row: Sequence[str]) -> list[str]:
    """Returns the names of columns, without blanks around them; an unnamed one is `Unnamed: 0`.

    Raises:
      UserError: two columns share a name, or the row holds data.
    """
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(row)]
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        places = [str(index) for index, other in enumerate(names, start=1) if other == name]
        raise UserError(
            f"{file} has several columns {name!r} (the columns {' and '.join(places)}): rename or "
            f"remove all but one"
        )
    counted = [[str(start + i) for i in range(len(names))] for start in (0, 1)]
    if names not in counted and all(map(_is_number, names)):
        raise UserError(
            f"{file} begins with numbers ({', '.join(names[:3])}), where the names of the columns "
            f"belong: add a first row of names"
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _encoding(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(2)
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _form(file: Path, first: str, delimiter: str | None, skip_blanks: bool) -> dict[str, Any]:
    """Returns how the file is to be split, judged by its first line."""
    bare = re.sub(r'"[^"]*"', "", first)
    tabbed = file.suffix.lower() == ".tsv"
    found = next((mark for mark in DELIMITERS if mark in bare), ",")
    found = delimiter or ("\t" if tabbed else found)
    if len(found) != 1 or found in '"\r\n':
        raise UserError(f"data.delimiter must be one character such as ';', not {delimiter!r}")
    plain = tabbed and not first.startswith('"')
    blanks = found != "\t" and (skip_blanks or f"{found} " in bare)
    return {
        "delimiter": found,
        "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        "skipinitialspace": blanks,
    }


def _ragged(file: Path, line: int, row: Sequence[str], names: Sequence[str], delimiter: str) -> str:
    few = len(row) < len(names)
    remedy = "complete the row" if few else f"quote a field that contains {delimiter!r}"
    shown = delimiter.join(row)
    return (
        f"{file}, line {line}: {len(row)} fields, where the header has {len(names)} "
        f"({shown if len(shown) < 60 else shown[:57] + '...'}): {remedy}"
    )


def _undecodable(file: Path, error: UnicodeDecodeError) -> str:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                byte = line[found.start]
                return (
                    f"{file} cannot be read: line {number} holds the byte 0x{byte:02x}, which is "
                    f"not UTF-8: save the file as UTF-8"
                )
    return f"{file} cannot be read: {_reason(error)}: save the file as UTF-8"


def read_csv(path: str | Path, delimiter: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a CSV file as text; raises as `csv_rows` does."""
    rows = csv_rows(path, delimiter)
    return next(rows)[1], [row for _, row in rows]


def read_columns(path: str | Path, delimiter: str | None = None) -> dict[str, tuple[str, ...]]:
    """Returns the columns of a CSV file by name, as text; raises as `csv_rows` does."""
    header, rows = read_csv(path, delimiter)
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def column_index(path: str | Path, header: Sequence[str], name: str) -> int:
    """Returns the index of a column.

    Raises:
      UserError: there is no such column; suggests the nearest.
    """
    if name not in header:
        known = ", ".join(map(repr, header))
        raise UserError(f"{path} has no column {name!r} (it has {known}){nearest(name, header)}")
    return header.index(name)


def read_text(path: str | Path) -> str:
    """Returns the text of a UTF-8 file, or of a UTF-16 file with a byte order mark.

    Raises:
      UserError: it cannot be read.
    """
    file = Path(path).expanduser()
    try:
        return file.read_text(encoding=_encoding(file))
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(file, error)) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error


def read_texts(path: Path, column: str, delimiter: str | None = None) -> list[str]:
    """Returns the texts of a file: a column of a `TABULAR` file, else the whole file.

    Raises:
      UserError: it cannot be read, or has no such column.
    """
    if path.suffix.lower() not in TABULAR:
        return [read_text(path)]
    columns = read_columns(path, delimiter)
    column_index(path, list(columns), column)
    return list(columns[column])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
