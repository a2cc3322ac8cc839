"""Hashes of examples, and of files: complete, and kept for the next run on the same files."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.caches import private_cache
from jdl.data.sources import Source, flatten

_log = logging.getLogger(__name__)

SETTLED_SECONDS = 2.0
"""A file that changed later than this before it is read is hashed again in the next run: it may
change once more without another time."""

ANNOUNCED_BYTES = 10**10
"""More than this is announced before it is read."""


def hash_examples(source: Source) -> str:
    """Returns the SHA-256 of all examples, with the names of their features."""
    digest = hashlib.sha256()
    for i in range(len(source)):
        for name, value in sorted(flatten(source[i]).items()):
            digest.update(name.encode())
            add_array(digest, np.asarray(value))
    return digest.hexdigest()


def add_array(digest: Any, array: np.ndarray) -> None:
    """Updates a hash with dtype, shape and contents of an array; object arrays item by item."""
    digest.update(f" {array.dtype.str} {array.shape}".encode())
    if array.dtype.kind != "O":
        digest.update(array.tobytes())
        return
    for item in array.flat:
        if isinstance(item, bytes):
            digest.update(item)
        elif isinstance(item, str) or item is None:
            digest.update(repr(item).encode())
        else:
            add_array(digest, np.asarray(item))


def hash_files(files: Sequence[tuple[Path, str]]) -> str:
    """Returns the SHA-256 over every byte of some files, in their order.

    It is kept in the user's cache by the files' paths, sizes and times of change: they are read
    again only if one of these differs.

    Args:
      files: paths, each with a text that is hashed before the file.

    Raises:
      OSError: a file cannot be read.
    """
    began, stamps = time.time(), _stamps(files)
    cache = private_cache("fingerprints", "fingerprints of data")
    entry = cache / f"{_key(stamps)}.sha256" if cache else None
    known = _read(entry) if entry else None
    if known:
        return known
    size = sum(stamp[2] for stamp in stamps)
    if size > ANNOUNCED_BYTES:
        _log.warning(
            "reading %.0f GB in %s once, to notice if they change", size / 1e9, files[0][0].parent
        )
    digest = _hash(files)
    newest = max((time_ns for stamp in stamps for time_ns in stamp[3:]), default=0)
    if entry and newest < (began - SETTLED_SECONDS) * 1e9 and stamps == _stamps(files):
        _write(entry, digest)
    return digest


def _stamps(files: Sequence[tuple[Path, str]]) -> list[tuple[str, str, int, int, int]]:
    """Returns path, text, size in bytes, and times of change of contents and of the inode, in ns.

    The latter, since the former can be set back.
    """
    found = []
    for path, text in files:
        stat = path.stat()
        times = (stat.st_mtime_ns, stat.st_ctime_ns)
        found.append((str(path.resolve()), text, stat.st_size, *times))
    return found


def _key(stamps: Sequence[tuple[str, str, int, int, int]]) -> str:
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def _hash(files: Sequence[tuple[Path, str]]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for path, text in files:
        digest.update(text.encode())
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
    return digest.hexdigest()


def _read(entry: Path) -> str | None:
    """Returns a hash that was kept; None if there is none, or not a whole one."""
    try:
        text = entry.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _write(entry: Path, digest: str) -> None:
    part = entry.with_name(f".{entry.name}.{os.getpid()}")
    try:
        part.write_text(digest)
        part.replace(entry)
    except OSError as error:
        _log.info("the fingerprint of data is not kept: %s", error)
