"""Checkpoints: exact and verified; damaged ones are detected and skipped."""

import contextlib
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.checkpoint import MANIFEST, CheckpointStore, verify
from jdl.errors import UserError
from tests.checkpoints import (
    content,
    files,
    flip,
    like,
    make_state,
    metadata,
    newest,
    restore,
    save,
)

# Where a read or a write fails, Orbax closes its event loop before TensorStore has answered.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two whole checkpoints, of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 1, 2, keep=(1, 2))
    return directory


@pytest.fixture
def pair(saved, tmp_path):
    """A copy of them to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_restores_every_kind_of_leaf_bit_for_bit(saved):
    step, state, message = newest(saved)
    assert (step, message) == (2, "")
    assert content(state) == content(make_state(2))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(2))
    assert state is not None
    assert jax.random.normal(state.key) == jax.random.normal(jax.random.key(2))


def test_a_directory_without_checkpoints_gives_none(tmp_path):
    assert newest(tmp_path / "none") == (None, None, "")


def test_a_step_is_restored_by_number(saved):
    with contextlib.closing(CheckpointStore(saved)) as store:
        assert store.steps() == [1, 2]
    state, meta = restore(saved, 1)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        restore(saved, 3)
    assert content(state) == content(make_state(1))
    assert meta == metadata(1)


def test_keeps_what_is_asked_for_and_deletes_the_rest(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=(1, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.0", "3.0", "4.0"]
    save(tmp_path, 4, keep=(3,))  # the same step again, as after a fall-back
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.0", "4.1"]


def test_an_unfinished_save_is_ignored_and_named(pair):
    (pair / "2.0" / MANIFEST).unlink()
    step, state, message = newest(pair)
    assert step == 1
    assert content(state) == content(make_state(1))
    assert "2.0 is incomplete" in message
    shutil.rmtree(pair / "1.0")
    assert newest(pair)[0] is None, "nothing was ever completed: the run starts over"


def test_one_flipped_byte_in_any_file_is_found_and_the_one_before_is_used(pair):
    random = np.random.default_rng(0)
    for path in files(pair / "2.0"):
        whole = path.read_bytes()
        flip(path, int(random.integers(len(whole))), int(random.integers(8)))
        step, state, message = newest(pair)
        assert (step, content(state)) == (1, content(make_state(1))), path
        assert "2.0 is damaged" in message
        assert path.name in message
        path.write_bytes(whole)
    assert newest(pair)[0] == 2


def test_twenty_random_bytes_of_the_arrays_are_found(tmp_path):
    save(tmp_path, 1, size=128)
    random = np.random.default_rng(1)
    payload = [path for path in files(tmp_path / "1.0" / "state") if path.stat().st_size > 4096]
    sizes = np.array([path.stat().st_size for path in payload])
    assert sizes.sum() > 2 * 128 * 128 * 4 * 0.8, "most of the arrays' bytes are aimed at"
    for path in random.choice(payload, 20, p=sizes / sizes.sum()):
        position, bit = int(random.integers(path.stat().st_size)), int(random.integers(8))
        flip(path, position, bit)
        assert verify(tmp_path / "1.0") == (
            f"{path.relative_to(tmp_path / '1.0')} does not match its SHA-256"
        )
        flip(path, position, bit)
        assert verify(tmp_path / "1.0") == ""


def test_no_byte_of_the_manifest_may_change(pair):
    path = pair / "2.0" / MANIFEST
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flip(path, position, position % 8)
        assert MANIFEST in verify(pair / "2.0"), position
        path.write_bytes(whole)
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        assert MANIFEST in verify(pair / "2.0"), length


def test_truncated_lengthened_missing_and_extra_files_are_named(pair):
    checkpoint = pair / "2.0"
    for path in files(checkpoint):
        whole, name = path.read_bytes(), str(path.relative_to(checkpoint))
        for damage in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
            path.write_bytes(damage)
            assert name in verify(checkpoint), (path, len(damage))
        path.unlink()
        assert name in verify(checkpoint), path
        if name != MANIFEST:
            with pytest.raises(UserError, match=r"2\.0 is damaged: .* is missing"):
                restore(pair, 2)
        path.write_bytes(whole)
        extra = path.with_name("extra")
        extra.write_bytes(b"")
        assert str(extra.relative_to(checkpoint)) in verify(checkpoint)
        extra.unlink()
    assert verify(checkpoint) == ""


def test_swapped_files_and_a_stale_manifest_are_found(pair):
    def swap(one, other):
        one.rename(pair / "kept")
        other.rename(one)
        (pair / "kept").rename(other)

    old, new = pair / "1.0", pair / "2.0"
    for one, other in [
        (new / "state/manifest.ocdbt", new / "state/ocdbt.process_0/manifest.ocdbt"),
        (new / "meta.json", old / "meta.json"),
        (new / "state", old / "state"),
        (new / MANIFEST, old / MANIFEST),
    ]:
        swap(one, other)
        assert verify(new), one
        assert newest(pair)[0] != 2 if one.parent == other.parent.parent else verify(old), one
        swap(one, other)
    assert verify(new) == verify(old) == ""


def test_where_all_are_damaged_nothing_is_restored_or_deleted(pair):
    for checkpoint in pair.iterdir():
        flip(files(checkpoint / "state" / "d")[0], 7)
    before = {path: path.read_bytes() for path in files(pair)}
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        newest(pair)
    assert {path: path.read_bytes() for path in files(pair)} == before


def test_a_model_of_another_shape_is_refused_in_one_sentence(saved):
    with pytest.raises(UserError, match=r"2\.0 does not fit the model: .* is float32 .* and "):
        newest(saved, like(make_state(0, size=8)))


def test_a_save_behind_the_training_keeps_the_bytes_of_donated_buffers(tmp_path):
    change = jax.jit(lambda s: s.replace(params=jax.tree.map(jnp.cos, s.params)), donate_argnums=0)
    state = make_state(1, size=1500)
    expected = content(state)
    with contextlib.closing(CheckpointStore(tmp_path)) as store:
        store.save(state, metadata(1), ())
        for _ in range(5):
            state = jax.block_until_ready(change(state))  # gives the saved buffers away
    assert content(state) != expected
    assert content(newest(tmp_path, like(state))[1]) == expected


def test_the_manifest_comes_last_and_after_every_file_is_on_the_disk(tmp_path, monkeypatch):
    checkpoint, synced, real = tmp_path / "1.0", [], os.fsync

    def spy(descriptor):
        real(descriptor)
        synced.append((os.fstat(descriptor).st_ino, (checkpoint / MANIFEST).exists()))

    monkeypatch.setattr(os, "fsync", spy)
    save(tmp_path, 1)
    before = {inode for inode, complete in synced if not complete}
    after = {inode for inode, complete in synced if complete}
    for path in files(checkpoint):
        assert path.stat().st_ino in before, f"{path} may not be on the disk"
    for path in {path.parent for path in files(checkpoint)} - {checkpoint}:
        assert path.stat().st_ino in before, f"names in {path} may not be on the disk"
    assert {checkpoint.stat().st_ino, tmp_path.stat().st_ino} <= after
    latest = max(path.stat().st_mtime_ns for path in files(checkpoint) if path.name != MANIFEST)
    assert (checkpoint / MANIFEST).stat().st_mtime_ns >= latest


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # no file above 1 MiB
        with pytest.raises(UserError, match=r"2\.0 could not be written .* earlier ones are int"):
            save(tmp_path, 2, size=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    step, state, message = newest(tmp_path)
    assert (step, content(state)) == (1, content(make_state(1)))
    assert "2.0 is incomplete" in message
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.1"]
