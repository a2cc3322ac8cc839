"""Sounds in files: formats, and what is wrong with some."""

import struct

import numpy as np
import pytest

from jdl.audio import read_audio, resample
from jdl.audio.files import describe_faults
from jdl.errors import UserError
from tests.audio.librosa_values import sound

soundfile = pytest.importorskip("soundfile")


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [("wav", "PCM_16", 2**-15), ("wav", "PCM_24", 2**-23), ("flac", "PCM_24", 2**-23),
     ("wav", "FLOAT", 0), ("wav", "PCM_U8", 2**-7), ("ogg", "VORBIS", 0.1)],
)  # fmt: skip
def test_formats(tmp_path, suffix, subtype, error):
    path, x = tmp_path / f"a.{suffix}", sound()
    soundfile.write(path, x, 8000, subtype)
    found, rate = read_audio(path)
    assert rate == 8000
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x, atol=error)


def test_another_rate_and_several_channels(tmp_path):
    x = sound(9000)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([x, 0.5 * x], 1), 12000, "FLOAT")
    found, rate = read_audio(path, 8000)
    assert rate == 8000
    assert len(found) == 6000
    np.testing.assert_array_equal(found, resample(0.75 * x, 12000, 8000))
    np.testing.assert_array_equal(read_audio(path, channel=1)[0], 0.5 * x)
    tone = np.sin(2 * np.pi * 440 * np.arange(12000) / 12000).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    np.testing.assert_allclose(resample(tone, 12000, 8000)[200:-200], expected[200:-200], atol=1e-3)


def _with_length(path, change):
    """Changes the length of the sound in the header of a WAV file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    (size,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, change(size))
    path.write_bytes(data)


def _empty(path):
    soundfile.write(path, np.zeros(0), 8000)


def _opposite(path):
    soundfile.write(path, np.stack([sound(), -sound()], 1), 8000)


def _not_finite(path):
    soundfile.write(path, np.array([0, np.nan], np.float32), 8000, "FLOAT")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (
            lambda path: path.write_bytes(b"hello"),
            r"cannot be read as a sound \(Format not recog.* convert it to WAV",
        ),
        (lambda path: path.write_bytes(b""), r"a\.wav is empty: remove it"),
        (_empty, "holds no samples"),
        (_opposite, "2 channels of .* cancel each other"),
        (_not_finite, "no numbers"),
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "promises 6000 .* 5500 are left"),
        (lambda path: _with_length(path, lambda n: n + 64), "promises 6064 .* 6000 are left"),
        (lambda path: _with_length(path, lambda n: n - 3000), "wrong length .* 3000 .* 6000 fol"),
        (lambda path: _with_length(path, lambda n: 0), "wrong length .*: 0 .* 6000 follow"),
    ],
)
def test_unreadable_files(tmp_path, spoil, message):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 8000)
    spoil(path)
    with pytest.raises(UserError, match=message):
        read_audio(path)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_header_without_length_is_read_to_the_end(tmp_path, length):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 8000)
    _with_length(path, lambda size: length)
    assert len(read_audio(path)[0]) == 3000


def test_further_chunks_are_no_fault(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 8000)
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    path.write_bytes(path.read_bytes() + chunk)
    assert len(read_audio(path)[0]) == 3000


def test_no_such_channel(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 8000)
    with pytest.raises(UserError, match="has 1 channels, numbered from 0, and no 2"):
        read_audio(path, channel=2)


def test_faults():
    x = sound()
    assert describe_faults(np.zeros(100, np.float32), 8000) == "silent"
    assert describe_faults(x, 8000) == ""
    assert describe_faults(x[:100], 8000) == "short (12 ms)"
    assert describe_faults(np.sin(np.arange(8000) / 50).astype(np.float32), 8000) == ""
    assert describe_faults(np.clip(20 * x, -1, 1), 8000).startswith("clipped (")


@pytest.mark.parametrize(("suffix", "message"), [("ogg", "cut short"), ("flac", "lost sync|seek")])
def test_compressed_sounds_that_are_cut_short(tmp_path, suffix, message):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.tile(sound(), 20), 8000)
    whole = path.read_bytes()
    assert len(read_audio(path)[0]) == 60_000
    for end in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=message):
            read_audio(path)
