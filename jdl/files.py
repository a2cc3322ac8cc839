"""The record of a run: `metrics.jsonl`, and small files written whole or not at all."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jdl.typing import Json


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended and flushed at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a")

    def append(self, row: Mapping[str, Json]) -> None:
        """Adds a row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without a torn last line."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def truncate_rows(path: Path, step: int) -> None:
    """Drops the rows after a step, and torn lines."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file; whoever reads it finds the old text or the new."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, value: Json) -> None:
    """Replaces a file by JSON for people to read."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a file by texts, one a line; line breaks within a text become spaces."""
    write_atomically(path, "".join(" ".join(line.split("\n")) + "\n" for line in lines))
