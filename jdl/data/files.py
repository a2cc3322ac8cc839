"""Readers of user files, with errors that name the location."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.errors import UserError, first_line, nearest

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Of Pillow, by channels."""


def read_csv(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a CSV file, without blank lines.

    Files called `.tsv` are split at tabs, and quotes in them are ordinary characters.

    Raises:
      UserError: it cannot be read, is empty, or a row is longer or shorter than the header.
    """
    file = Path(path).expanduser()
    tabbed = file.suffix.lower() == ".tsv"
    form: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabbed else {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True, **form)
            numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error
    if len(numbered) < 2:
        raise UserError(f"{file} holds no rows below a header")
    (_, header), *rows = numbered
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{file}, line {line}: {len(row)} fields, where the header has {len(header)}"
            )
    return header, [row for _, row in rows]


def read_columns(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Returns the columns of a CSV file by name, as text; raises as `read_csv` does."""
    header, rows = read_csv(path)
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


def parse_numbers(path: str | Path, name: str, texts: Sequence[str]) -> np.ndarray:
    """Returns a column as float64.

    Raises:
      UserError: a field is not a finite number; names its row, the first below the header being 1.
    """
    values = np.empty(len(texts))
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise UserError(f"{path}: column {name!r} holds {text!r} in row {row + 1}, no number")
    return values


def parse_matrix(
    path: str | Path, columns: Mapping[str, Sequence[str]], names: Sequence[str]
) -> np.ndarray:
    """Returns the named columns as (rows, names) float64.

    Raises:
      UserError: a column is missing, or a field is not a finite number.
    """
    for name in names:
        column_index(path, list(columns), name)
    return np.stack([parse_numbers(path, name, columns[name]) for name in names], axis=1)


def is_numeric(texts: Sequence[str]) -> bool:
    """Returns whether a column's first field is a number."""
    try:
        float(texts[0])
    except ValueError:
        return False
    return True


def read_text(path: str | Path) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
      UserError: it cannot be read.
    """
    file = Path(path).expanduser()
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error


def read_texts(path: Path, column: str) -> list[str]:
    """Returns the texts of a file: a column of a CSV file, else the whole file.

    Raises:
      UserError: it cannot be read, or has no such column.
    """
    if path.suffix.lower() != ".csv":
        return [read_text(path)]
    columns = read_columns(path)
    column_index(path, list(columns), column)
    return list(columns[column])


def decode_image(path: Path, mode: str) -> np.ndarray:
    """Returns an image file as (height, width, channels) uint8.

    Args:
      path: the file.
      mode: Pillow mode, such as `RGB` or `L`.

    Raises:
      UserError: it is not an image, or damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable image: {first_line(error)}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
