"""Checkpoints: exact, vouched for, and harmless whatever lies in their directory."""

import contextlib
import hashlib
import json
import os
import pickle
import resource
import shutil
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl.checkpoint import MANIFEST, Store, verify
from jdl.errors import UserError
from jdl.state import TrainState

# Where a read or a write fails, Orbax closes its event loop before TensorStore has answered.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


class Moments(NamedTuple):
    count: Any
    mean: Any
    frozen: Any


def make_state(step, size=16):
    """A state with every kind of leaf and container that occurs, its numbers made from the step."""
    values = np.random.default_rng(step)
    kernel = values.normal(size=(size, size)).astype(np.float32)
    kernel[0, :3] = [np.nan, np.inf, -0.0]
    params = {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.arange(3, dtype=jnp.bfloat16)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        key=jax.random.key(step),
        params=params,
        collections={"batch_stats": {"mean": jnp.float32(values.normal()), "n": jnp.int8([-1, 2])}},
        opt_state=(
            Moments(jnp.uint32(step), jax.tree.map(jnp.negative, params), jnp.array([True, False])),
            optax.EmptyState(),
            (),
            {"scale": jnp.float16([0.1, step])},
        ),
    )


def like(state):
    sharding = state.step.sharding
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def content(state):
    """Path, dtype, shape and bytes of every leaf."""
    numbers = state.replace(key=jax.random.key_data(state.key))
    return [
        (jax.tree_util.keystr(path), leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(numbers)
    ]


LIKE = like(make_state(0))


def save(directory, *steps, keep=(), size=16):
    store = Store(directory)
    for step in steps:
        store.save(step, make_state(step, size), {"step": step, "hooks": {"1 A": None}}, keep)
    store.close()


def restore(directory, step):
    with contextlib.closing(Store(directory)) as store:
        return store.restore(step, LIKE)


def newest(directory, target=LIKE):
    """The step restored, its state and what was said on the way."""
    said = []
    with contextlib.closing(Store(directory, said.append)) as store:
        found = store.newest(target)
    state, meta = found or (None, {"step": None})
    return meta["step"], state, "\n".join(said)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def sign(checkpoint):
    """Makes the manifest true of what is there, as someone who means harm would."""
    entries = {}
    for path in files(checkpoint):
        if path.name != MANIFEST:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"size": path.stat().st_size, "sha256": digest}
            entries[str(path.relative_to(checkpoint))] = entry
    sign_entries(checkpoint, entries)


def sign_entries(checkpoint, entries):
    body = json.dumps(entries, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(f'{{"sha256": "{digest}", "files": {body}}}')


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
    step, state, said = newest(saved)
    assert (step, said) == (2, "")
    assert content(state) == content(make_state(2))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(2))
    assert state is not None
    assert jax.random.normal(state.key) == jax.random.normal(jax.random.key(2))


def test_a_directory_without_checkpoints_gives_none(tmp_path):
    assert newest(tmp_path / "none") == (None, None, "")


def test_a_step_is_restored_by_number(saved):
    with contextlib.closing(Store(saved)) as store:
        assert store.steps() == [1, 2]
    state, meta = restore(saved, 1)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        restore(saved, 3)
    assert content(state) == content(make_state(1))
    assert meta == {"step": 1, "hooks": {"1 A": None}}


def test_keeps_what_is_asked_for_and_deletes_the_rest(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=(1, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.0", "3.0", "4.0"]
    save(tmp_path, 4, keep=(3,))  # the same step again, as after a fall-back
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.0", "4.1"]


def test_an_unfinished_save_is_ignored_and_named(pair):
    (pair / "2.0" / MANIFEST).unlink()
    step, state, said = newest(pair)
    assert step == 1
    assert content(state) == content(make_state(1))
    assert "2.0 is incomplete" in said
    shutil.rmtree(pair / "1.0")
    assert newest(pair)[0] is None, "nothing was ever completed: the run starts over"


def test_one_flipped_byte_in_any_file_is_found_and_the_one_before_is_used(pair):
    random = np.random.default_rng(0)
    for path in files(pair / "2.0"):
        whole = path.read_bytes()
        flip(path, int(random.integers(len(whole))), int(random.integers(8)))
        step, state, said = newest(pair)
        assert (step, content(state)) == (1, content(make_state(1))), path
        assert "2.0 is damaged" in said
        assert path.name in said
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
    with contextlib.closing(Store(tmp_path)) as store:
        store.save(1, state, {"step": 1}, ())
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
    step, state, said = newest(tmp_path)
    assert (step, content(state)) == (1, content(make_state(1)))
    assert "2.0 is incomplete" in said
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.1"]


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.fixture(scope="module")
def audit():
    """Names imported and classes unpickled while `audit["on"]`; an audit hook cannot be removed."""
    log: dict[str, Any] = {"on": False, "events": []}

    def hook(event, args):
        if log["on"] and event in ("import", "pickle.find_class", "exec", "marshal.loads"):
            log["events"].append((event, str(args)))

    sys.addaudithook(hook)
    return log


def restore_watched(audit, directory):
    audit.update(on=True, events=[])
    try:
        return newest(directory)
    finally:
        audit["on"] = False


def plant_pickle(checkpoint, target):
    (checkpoint / "meta.json").write_bytes(pickle.dumps(Bomb(target)))


def plant_pickle_as_tree(checkpoint, target):
    (checkpoint / "state" / "_METADATA").write_bytes(pickle.dumps(Bomb(target)))


def plant_odd_meta(checkpoint, target):
    (checkpoint / "meta.json").write_text("[" * 100_000)


def plant_nonsense(checkpoint, target):
    (checkpoint / "state" / "_METADATA").write_text('{"tree_metadata": {"evil_module.f": 7}}')


def plant_symlink(checkpoint, target):
    path = files(checkpoint / "state" / "d")[0]
    path.rename(target.parent / "elsewhere")
    path.symlink_to(target.parent / "elsewhere")


@pytest.mark.parametrize(
    "plant",
    [
        plant_pickle,
        plant_pickle_as_tree,
        plant_odd_meta,
        plant_nonsense,
        plant_symlink,
    ],
)
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(plant, pair, tmp_path, audit):
    shutil.rmtree(pair / "1.0")
    target = tmp_path / "outside" / "written"
    target.parent.mkdir()
    plant(pair / "2.0", target)
    sign(pair / "2.0")
    with pytest.raises(UserError, match=r"2\.0|every checkpoint"):
        restore_watched(audit, pair)
    assert not target.exists()
    assert not [event for event in audit["events"] if event[0] == "pickle.find_class"]


def test_shapes_that_a_checkpoint_claims_take_no_memory(pair):
    for name in ("_METADATA", "array_metadatas/process_0"):
        path = pair / "2.0" / "state" / name
        text = path.read_text()
        assert "[16, 16]" in text
        path.write_text(text.replace("[16, 16]", "[1099511627776, 1099511627776]"))
    sign(pair / "2.0")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(UserError):
        step, state, _ = newest(pair)
        assert content(state) == content(make_state(step)), "shapes are the model's"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "state/../../../outside"])
def test_a_manifest_cannot_vouch_for_files_elsewhere(name, pair, tmp_path):
    (tmp_path / "outside").write_text("x")
    checkpoint = pair / "2.0"
    entries = json.loads((checkpoint / MANIFEST).read_text())["files"]
    sign_entries(checkpoint, entries)
    assert verify(checkpoint) == "", "our own signature is right"
    digest = hashlib.sha256(b"x").hexdigest()
    sign_entries(checkpoint, {**entries, name: {"size": 1, "sha256": digest}})
    assert name in verify(checkpoint)
    assert newest(pair)[0] == 1


def test_no_name_in_a_checkpoint_is_imported(pair, tmp_path, audit, monkeypatch):
    (tmp_path / "evil_module.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = pair / "2.0"
    meta = {"step": 2, "hooks": {"1 evil_module.Hook": {"class": "evil_module.Hook"}}}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    path = checkpoint / "state" / "_CHECKPOINT_METADATA"
    handler = json.loads(path.read_text())["item_handlers"]
    path.write_text(path.read_text().replace(handler, "evil_module.Handler"))
    sign(checkpoint)
    step, state, _ = restore_watched(audit, pair)
    assert (step, content(state)) == (2, content(make_state(2)))
    names = [detail for _, detail in audit["events"]]
    assert not any("evil_module" in name for name in names)
    assert not (tmp_path / "executed").exists()


def test_deleting_does_not_follow_a_link_out_of_the_directory(tmp_path):
    outside, directory = tmp_path / "outside", tmp_path / "checkpoints"
    save(outside, 1)
    before = {path: path.read_bytes() for path in files(outside)}
    directory.mkdir()
    (directory / "0.0").symlink_to(outside / "1.0")
    save(directory, 2)
    assert {path: path.read_bytes() for path in files(outside)} == before


def test_names_that_are_no_checkpoints_are_left_alone(tmp_path):
    odd = ["1.2.3", ".5", "7.", "²", "1.a", "notes.txt"]
    for name in odd:
        (tmp_path / name).mkdir()
    save(tmp_path, 2)
    assert newest(tmp_path)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*odd, "2.0"])
