"""Malicious checkpoints: nothing in them is executed, nothing outside of them is touched."""

import contextlib
import hashlib
import json
import pickle
import resource
import shutil
import sys
from typing import Any

import pytest

from jdl.checkpoint import MANIFEST, verify
from jdl.errors import UserError
from jdl.files import CheckpointMetadata
from tests.checkpoints import content, files, make_state, newest, save, sign, sign_entries

# Where a read or a write fails, Orbax closes its event loop before TensorStore has answered.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def pair(tmp_path):
    """Two whole checkpoints, of steps 1 and 2, to be tampered with."""
    save(tmp_path / "checkpoints", 1, 2, keep=(1, 2))
    return tmp_path / "checkpoints"


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
    hooks = {"1 evil_module.Hook": {"class": "evil_module.Hook"}}
    meta = CheckpointMetadata(step=2, hooks=hooks).to_json()
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
