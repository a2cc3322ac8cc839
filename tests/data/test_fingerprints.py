"""Fingerprints of files cover every byte, and are kept for the next run on the same files."""

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jdl.data import ImageFolder, fingerprints
from jdl.data.fingerprints import hash_files
from jdl.data.splits import Splits

LONG_AGO = 10**9  # in seconds


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The lists of files that were read, with an empty cache and a clock that is far ahead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    later = os.stat(tmp_path).st_ctime + 60
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time=lambda: later))
    found, real = [], fingerprints._hash

    def spy(files):
        found.append([path.name for path, _ in files])
        return real(files)

    monkeypatch.setattr(fingerprints, "_hash", spy)
    return found


def kept(tmp_path):
    return sorted((tmp_path / "cache/jdl/fingerprints").iterdir())


def test_every_byte_counts(tmp_path, reads):
    content = np.random.default_rng(0).bytes((3 << 20) + 17)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(content)
    two.write_bytes(b"")
    expected = hashlib.sha256(b"first" + content + b"second").hexdigest()
    assert hash_files([(one, "first"), (two, "second")]) == expected
    assert hash_files([]) == hashlib.sha256().hexdigest()
    # In the middle, with the time of change set back.
    before = one.stat()
    with one.open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(bytes([content[len(content) // 2] ^ 1]))
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_files([(one, "first"), (two, "second")]) != expected
    assert reads == [["one", "two"], [], ["one", "two"]]


def test_a_file_is_read_again_only_if_it_may_have_changed(tmp_path, reads):
    path = tmp_path / "data"
    path.write_bytes(b"content")
    first = hash_files([(path, "a")])
    assert hash_files([(path, "a")]) == first
    assert len(reads) == 1
    assert [entry.read_text() for entry in kept(tmp_path)] == [first]
    assert kept(tmp_path)[0].parent.stat().st_mode & 0o777 == 0o700
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert hash_files([(path, "a")]) == first
    assert len(reads) == 2
    path.write_bytes(b"contents")
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert hash_files([(path, "a")]) != first
    assert len(reads) == 3
    hash_files([(path, "b")])
    other = path.with_name("moved")
    path.rename(other)
    hash_files([(other, "b")])
    assert len(reads) == 5
    hash_files([(other, "b")])
    assert len(reads) == 5


def test_what_was_kept_by_halves_is_not_believed(tmp_path, reads):
    path = tmp_path / "data"
    path.write_bytes(b"content")
    first = hash_files([(path, "")])
    for damage in (first[:40].encode(), b"", b"\xff" * 64):
        kept(tmp_path)[0].write_bytes(damage)
        assert hash_files([(path, "")]) == first
    assert len(reads) == 4
    assert [entry.read_text() for entry in kept(tmp_path)] == [first]


def test_what_may_still_change_is_not_kept(tmp_path, reads, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(b"content")
    monkeypatch.setattr(fingerprints.time, "time", lambda: path.stat().st_ctime + 1)
    hash_files([(path, "")])
    assert kept(tmp_path) == []
    # One that changes while it is read.
    real = fingerprints._hash

    def write(files):
        found = real(files)
        path.write_bytes(b"other content")
        return found

    monkeypatch.setattr(fingerprints.time, "time", lambda: path.stat().st_ctime + 60)
    monkeypatch.setattr(fingerprints, "_hash", write)
    hash_files([(path, "")])
    assert kept(tmp_path) == []


def fail():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("obstacle", ["file", "shared", "full", "homeless"])
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, reads, monkeypatch, obstacle):
    if obstacle == "file":
        (tmp_path / "cache").write_bytes(b"")
    elif obstacle == "shared":
        (tmp_path / "cache/jdl/fingerprints").mkdir(parents=True)
        (tmp_path / "cache/jdl/fingerprints").chmod(0o777)
    elif obstacle == "homeless":  # as of a user without an entry in the list of users
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", fail)
    else:

        def full(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
    path = tmp_path / "data"
    path.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    assert [hash_files([(path, "")]) for _ in range(2)] == [expected] * 2
    assert len(reads) == 2


def test_much_data_is_announced_once(tmp_path, reads, monkeypatch, caplog):
    monkeypatch.setattr(fingerprints, "ANNOUNCED_BYTES", 5)
    (tmp_path / "data").write_bytes(b"content")
    for _ in range(2):
        hash_files([(tmp_path / "data", "")])
    (record,) = caplog.records
    assert f"in {tmp_path} once" in record.getMessage()


def test_image_folders_are_read_once(tmp_path, reads):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(5):
            image = Image.new("RGB", (4, 4), (index, 0, 0))
            image.save(tmp_path / "images" / name / f"{index}.png")
    data = ImageFolder(str(tmp_path / "images"))
    first = Splits(data).fingerprints()
    assert len(reads) == 1  # of all three splits, which are parts of one
    assert Splits(data).fingerprints() == first
    assert len(reads) == 1
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "images/cat/0.png")
    assert Splits(data).fingerprints() != first
    assert len(reads) == 2
