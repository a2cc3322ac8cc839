"""Readers of files and archives that may be damaged or malicious.

Archives are read member by member in memory: nothing is extracted, so no name in them can matter.
"""

import gzip
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jdl.errors import UserError, first_line

# Far above any file in the originals: a longer one is a decompression bomb.
LARGEST_BYTES = 256 << 20

# What truncated, damaged or unreadable files raise (RuntimeError: an encrypted zip member).
DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def find_files(raw: Path, names: Sequence[str]) -> dict[str, Path]:
    """Returns the path of each of `names` in the directory `raw`, plain or as `.gz`."""
    found = {
        name: path for name in names for path in (raw / f"{name}.gz", raw / name) if path.is_file()
    }
    missing = [name for name in names if name not in found]
    if missing:
        what = "lacks" if raw.is_dir() else "is no directory that holds"
        raise UserError(f"{raw} {what} {', '.join(missing)} (each may end in .gz)")
    return found


def find_archive(raw: Path, archive: str, folder: str, *, inside: str) -> Path:
    """Returns the archive, or the extracted folder (which contains `inside`), at or in `raw`."""
    if raw.is_file():
        return raw
    if (raw / inside).exists():
        return raw
    for path in (raw / archive, raw / folder):
        if path.exists():
            return path
    what = "holds neither" if raw.is_dir() else "does not exist: give"
    raise UserError(f"{raw} {what} {archive} {'nor' if raw.is_dir() else 'or'} a folder {folder}")


def find_archives(raw: Path, wanted: Mapping[str, str]) -> dict[str, Path]:
    """Returns for each archive in the directory `raw` itself, or the folder extracted from it.

    Args:
      raw: the directory.
      wanted: names of archives, with those of their extracted folders.
    """
    found = {
        archive: path
        for archive, folder in wanted.items()
        for path in (raw / folder, raw / archive)
        if path.exists()
    }
    missing = [f"{name} (or a folder {wanted[name]})" for name in wanted if name not in found]
    if missing:
        what = "lacks" if raw.is_dir() else "is no directory that holds"
        raise UserError(f"{raw} {what} {', '.join(missing)}")
    return {name: found[name] for name in wanted}


def read_members(
    source: Path, folder: str, pattern: re.Pattern[str]
) -> Iterator[tuple[re.Match[str], bytes]]:
    """Yields (name, contents) of each full match in an archive or an extracted folder.

    Args:
      source: tar or zip file, or a directory, whose names are then prefixed with `folder`.
      folder: name of the archive's top folder.
      pattern: regular expression for `/`-separated names.

    Raises:
      UserError: the archive is damaged.
    """
    try:
        for name, stream in open_members(source, folder, pattern):
            match = pattern.fullmatch(name)
            if match:
                yield match, read_bounded(stream, source)
    except DAMAGE as error:
        raise damage_error(source, error) from error


def open_members(
    source: Path, folder: str, pattern: re.Pattern[str]
) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields (name, open stream) of each member that matches `pattern`."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = f"{folder}/{path.relative_to(source).as_posix()}"
            if pattern.fullmatch(name):
                with path.open("rb") as stream:
                    yield name, stream
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for entry in archive.infolist():
                name = posixpath.normpath(entry.filename)
                if pattern.fullmatch(name):
                    with archive.open(entry) as stream:
                        yield name, stream
    else:
        with tarfile.open(source) as archive:
            for entry in archive:
                name = posixpath.normpath(entry.name)
                if entry.isfile() and pattern.fullmatch(name):
                    stream = archive.extractfile(entry)
                    assert stream is not None  # it is a file
                    yield name, stream
            # tarfile takes a damaged header for the end; gzip's checksum follows the last byte.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass


def read_whole(path: Path) -> bytes:
    """Returns a file's bytes, decompressed if they are gzipped, whatever its name."""
    try:
        with path.open("rb") as stream:
            return read_bounded(unzipped(stream), path)
    except DAMAGE as error:
        raise damage_error(path, error) from error


def unzipped(stream: Any) -> Any:
    """Returns a stream that decompresses another, or the other if it is not gzipped."""
    return gzip.open(stream) if stream.peek(2)[:2] == b"\x1f\x8b" else stream


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file."""
    try:
        return read_whole(path).decode()
    except UnicodeDecodeError as error:
        raise damage_error(path, error) from error


def read_bounded(stream: Any, path: Path) -> bytes:
    """Returns the rest of a stream; fails if it exceeds any original."""
    data = stream.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise UserError(f"{path} is not the original: a file in it passes {LARGEST_BYTES} bytes")
    return data


def damage_error(path: Path, error: BaseException) -> UserError:
    """Returns the error for an unreadable file."""
    reason = first_line(error).rstrip(":")
    return UserError(f"{path} is truncated, damaged or unreadable ({reason})")
