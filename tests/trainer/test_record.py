"""The metadata in a run directory."""

import hashlib
import json
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.models import MLP
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.trainer import record
from jdl.trainer.environment import environment
from jdl.trainer.record import differences, params_sha256
from jdl.trainer.training_run import TrainingRun


def by_hand(leaves):
    """SHA-256 over path, dtype, shape and little-endian bytes in path order."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        array = leaves[path]
        digest.update(f"{path} {array.dtype} {list(array.shape)} ".encode())
        for number in array.ravel():
            data = number.tobytes()
            digest.update(data if sys.byteorder == "little" else data[::-1])
    return digest.hexdigest()


def test_params_sha256_is_that_of_the_bytes_in_path_order():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    scale = np.asarray(jnp.asarray([1.5, -2.25], jnp.bfloat16))
    count = np.array(3, np.int32)
    tree = {"b": {"kernel": jnp.asarray(kernel.T).T}, "a": [jnp.asarray(count)], "B": scale}
    leaves = {"b.kernel": kernel, "a.0": count, "B": scale}
    assert params_sha256(tree) == by_hand(leaves)
    assert params_sha256({**tree, "b": {"kernel": kernel.astype(">f4")}}) == by_hand(leaves)


def test_params_sha256_sees_every_change():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    changed = [
        {**base, "a": np.zeros((3, 2), np.float32)},
        {**base, "a": np.zeros((2, 3), np.int32)},
        {**base, "a": np.zeros((), np.float32)},
        {**base, "a": np.zeros((1,), np.float32)},
        {**base, "b": np.array([0, -0.0], np.float32)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    assert len({params_sha256(tree) for tree in [base, *changed]}) == len(changed) + 1


@pytest.mark.parametrize("strategy", [Single(), FullySharded(min_elements=1), Pmap()])
def test_params_sha256_does_not_depend_on_how_the_parameters_lie(strategy, tmp_path):
    x = np.zeros((4, 6), np.float32)
    data = Arrays(
        {"train": {"image": x, "label": np.arange(4)}}, test_fraction=0.0, validation_fraction=0.0
    )

    def initial(strategy):
        experiment = jdl.Experiment(
            model=MLP(widths=(), features=4), data=data, strategy=strategy, steps=1, batch_size=4
        )
        run = TrainingRun(experiment, "x", tmp_path)
        run.state = run.compiled.init(jax.random.key(0))
        return run.gather_state().params

    assert params_sha256(initial(strategy)) == params_sha256(initial(DataParallel()))


def test_differences_names_every_leaf_that_differs():
    old = {"a": 1, "b": {"c": [1, 2], "d": 2.0}, "e": {"f": 1}, "same": {"x": None}}
    new = {"a": 2, "b": {"c": [1, 3], "d": 2.0}, "e": 5, "same": {"x": None}, "g": "h"}
    assert differences(old, new) == [
        "a: 1 -> 2",
        "b.c: [1, 2] -> [1, 3]",
        "e: {'f': 1} -> 5",
        "g: None -> h",
    ]
    assert differences(old, old) == []
    assert differences({"x": 1}, {"x": 2}, "data.train") == ["data.train.x: 1 -> 2"]


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_environment_says_all_that_a_result_depends_on(tmp_path, monkeypatch):
    file = tmp_path / "experiment.py"
    file.write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("JAX_SOMETHING", "7")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    data = {"train": {"source": "arrays", "version": "", "sha256": "00", "count": 3}}
    found = environment(data, file)
    assert found["git_commit"] == commit
    assert found["data"] == data
    assert found["flags"] == {
        name: value
        for name, value in os.environ.items()
        if name.startswith("JAX_") or name == "XLA_FLAGS"
    }
    assert found["flags"]["JAX_SOMETHING"] == "7"
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["jdl"] == jdl.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "numpy", "orbax-checkpoint"} <= set(found["versions"])
    assert found["devices"]["platform"] == jax.default_backend()
    assert found["devices"]["kind"] == jax.devices()[0].device_kind
    assert (found["devices"]["count"], found["devices"]["processes"]) == (len(jax.devices()), 1)
    assert f"{len(os.sched_getaffinity(0))} CPU cores" in found["devices"]["machine"]
    assert json.loads(json.dumps(found)) == found
    assert "hush" not in json.dumps(found)
    file.write_text("two")
    assert environment(data, file)["git_commit"] == f"{commit}+changes"
    assert environment(data, tmp_path.parent / "x.py")["git_commit"] is None


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path):
    taken = pytest.raises(UserError, match=rf"in use by another run .*{os.getpid()}")
    with record.locked(tmp_path), taken, record.locked(tmp_path):
        pass
    with record.locked(tmp_path):
        pass
