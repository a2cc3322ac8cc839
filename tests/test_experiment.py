"""Validation of experiments, and loading of their files."""

import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import pytest

import jdl
from jdl import UserError
from jdl.config.experiment_file import available, documentation, expectation, find, load
from jdl.data import Digits
from jdl.models import MLP

SHIPPED = {"digits_mlp", "digits_cnn", "mnist_mlp", "mnist_cnn"}

FILE = '''"""A first line.

    jdl train own

Expect: test accuracy 0.9762 (5 seeds, min 0.9732), 12.5 s, 2 CPU cores
"""

from jdl import Experiment
from jdl.data import Digits
from jdl.models import MLP

experiment = Experiment(model=MLP(), data=Digits(), steps=1, seed=SEED)
'''


def experiment(**changes):
    return jdl.Experiment(**{"model": MLP(), "data": Digits(), "epochs": 1} | changes)


def write(path, text=FILE, seed: int | str = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("SEED", str(seed)))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -4}, "batch_size must be at least 1, not -4"),
        ({"num_microbatches": 0}, "num_microbatches must be at least 1"),
        ({"stop_after_skipped": 0}, "stop_after_skipped must be at least 1"),
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"steps": -1}, "steps must be positive, not -1"),
        ({"epochs": 0}, "epochs must be positive, not 0"),
        ({"epochs": -0.5}, "epochs must be positive, not -0.5"),
        ({"epochs": float("nan")}, "epochs must be positive, not nan"),
        ({"epochs": float("inf")}, "epochs must be positive, not inf"),
        ({"epochs": None}, "needs epochs or steps"),
        ({"seed": -1}, "seed must be between 0 and .*, not -1"),
        ({"seed": 2**63}, "seed must be between 0 and .*, not 9223372036854775808"),
        ({"model": MLP(dropout_rate=1.5)}, r"model.dropout_rate must be in \[0, 1\], not 1.5"),
        ({"model": MLP(dropout_rate=-0.1)}, "model.dropout_rate must be in .*, not -0.1"),
        ({"model": MLP(dropout_rate=float("nan"))}, "model.dropout_rate must be in .*, not nan"),
        ({"batch_size": 10, "num_microbatches": 4}, "batch_size 10 cannot be split into 4"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        experiment(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "least"),
    [("workers", 0), ("malloc_arenas", 0), ("steps_per_execution", 1), ("log_every", 1)],
)
def test_an_impossible_runtime_is_refused(name, least):
    with pytest.raises(UserError, match=rf"runtime\.{name} must be at least {least}, not -1"):
        jdl.Runtime(**{name: -1})


@pytest.mark.parametrize(
    ("changes", "examples", "steps"),
    [
        ({"epochs": 2, "batch_size": 10}, 100, 20),
        ({"epochs": 2, "batch_size": 32}, 100, 7),  # 6.25: the last batch begins a third epoch
        ({"epochs": 0.5, "batch_size": 10}, 100, 5),
        ({"epochs": 0.01, "batch_size": 10}, 100, 1),
        ({"epochs": 1, "batch_size": 64}, 10, 1),
        ({"epochs": 30, "steps": 4}, 100, 4),
        ({"epochs": None, "steps": 4}, 100, 4),
    ],
    ids=str,
)
def test_steps_of_a_run(changes, examples, steps):
    assert experiment(**changes).total_steps(examples) == steps


def test_precision():
    full, half = experiment(), experiment(precision="bf16")
    assert full.compute_model().dtype == jnp.float32
    assert half.compute_model().dtype == jnp.bfloat16
    assert half.model.dtype == jnp.float32

    class Plain(nn.Module):
        """Knows no dtype."""

    with pytest.raises(
        UserError, match="needs a model with a field dtype, which Plain does not have"
    ):
        experiment(model=Plain(), precision="bf16").compute_model()


def test_an_experiment_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "experiments/own.py", seed=1)
    write(tmp_path / "experiments/digits_mlp.py", seed=2)
    write(tmp_path / "experiments/_private.py")
    write(tmp_path / "own.py", seed=3)
    assert load("own").experiment.seed == 1
    assert load("own.py").experiment.seed == 3
    assert load(tmp_path / "own.py").experiment.seed == 3
    assert load("experiments/own.py").name == "own"
    assert load("digits_mlp").experiment.seed == 2  # the working directory's own comes first
    assert load("digits-cnn").path.parent != Path("experiments")
    assert set(available()) >= SHIPPED | {"own"}
    assert "_private" not in available()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_mpl", "no experiment 'digits_mpl'; did you mean 'digits_mlp'"),
        ("mnist-cmn", "no experiment 'mnist-cmn'; did you mean 'mnist_cnn'"),
        ("absent.py", "no experiment file absent.py"),
        ("somewhere/absent", "no experiment file somewhere/absent"),
    ],
)
def test_an_unknown_experiment(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nx = undefined\n", "line 3: NameError: name 'undefined' is not defined"),
        ("\nx = (\n", "line 2: SyntaxError"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        (
            "def f():\n    raise ValueError('first\\nsecond')\n\n\nf()\n",
            "line 2: ValueError: first",
        ),
        ("import math\n\nmath.sqrt(-1)\n", "line 3: ValueError: math domain error"),
        (FILE.replace("steps=1", "steps=0"), "steps must be positive, not 0"),
        (FILE.replace("steps=1", "stepz=1"), "line 12: TypeError: .*stepz"),
        ("experiment = 3\n", "defines no `experiment = Experiment"),
        ("", "defines no `experiment = Experiment"),
    ],
)
def test_a_file_with_a_mistake(tmp_path, text, message):
    path = write(tmp_path / "own.py", text)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_s_own_folder_is_importable_while_it_loads(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        write(tmp_path / folder / "deep.py", f"seed = {seed}\n")
        write(tmp_path / folder / "base.py", "import deep\n" + FILE, seed="deep.seed")
        write(tmp_path / folder / "own.py", "from base import experiment\n")
    before = list(sys.path)
    for folder, seed in (("a", 1), ("b", 2), ("a", 1)):
        file = load(tmp_path / folder / "own.py")
        assert file.experiment.seed == seed
        assert {path.name for path in file.siblings} == {"base.py", "deep.py"}
        assert {path.parent for path in file.siblings} == {tmp_path / folder}
    assert sys.path == before
    assert not {"base", "deep"} & set(sys.modules)


def test_a_model_of_an_imported_file_can_be_overridden(tmp_path):
    (tmp_path / "model.py").write_text(
        """
from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn


class Own(nn.Module):
    width: int = 4
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(self.activation(nn.Dense(self.width)(x.reshape(len(x), -1))))
"""
    )
    text = "from model import Own\n" + FILE.replace("MLP()", "Own()")
    loaded = load(write(tmp_path / "own.py", text)).experiment
    changes = {"model.width": "7", "model.activation": "flax.linen.tanh"}
    model = jdl.override(loaded, changes).model
    assert (model.width, model.activation) == (7, nn.tanh)


def test_a_file_that_fails_leaves_no_trace(tmp_path):
    write(tmp_path / "a/base.py", seed=1)
    write(tmp_path / "a/own.py", "from base import experiment\n\nraise ValueError('too late')\n")
    write(tmp_path / "b/base.py", seed=2)
    write(tmp_path / "b/own.py", "from base import experiment\n")
    before = list(sys.path)
    with pytest.raises(UserError, match="line 3: ValueError: too late"):
        load(tmp_path / "a/own.py")
    assert sys.path == before
    assert load(tmp_path / "b/own.py").experiment.seed == 2


def test_a_file_may_bear_the_name_of_an_installed_module(tmp_path):
    import json

    path = write(tmp_path / "json.py", seed=5)
    assert load(path).experiment.seed == 5
    assert sys.modules["json"] is json


def test_what_a_docstring_promises(tmp_path):
    path = write(tmp_path / "own.py", "raise SystemExit\n")
    path.write_text(FILE + "\nraise SystemExit\n")  # it is read, not run
    promise = expectation(path)
    assert promise is not None
    assert (promise.metric, promise.mean, promise.seeds) == ("test accuracy", 0.9762, 5)
    assert (promise.least, promise.seconds, promise.machine) == (0.9732, 12.5, "2 CPU cores")
    assert documentation(path).splitlines()[0] == "A first line."
    for text in (
        "",
        '"""No promise."""\n',
        FILE.replace("5 seeds", "5"),
        "# Expect: test accuracy 0.9 (1 seed, min 0.9), 1 s, M\n",
    ):
        path.write_text(text)
        assert expectation(path) is None
    path.write_text(FILE.replace("5 seeds", "1 seed"))
    assert expectation(path) is not None
    path.write_text("x = (\n")
    with pytest.raises(UserError, match=r"own\.py, line 1: "):
        expectation(path)


def test_shipped_experiments_name_themselves_in_their_docstring():
    for name in SHIPPED:
        text = documentation(available()[name])
        assert f"jdl train {name}" in text
        assert text.splitlines()[0].endswith(".")


def test_a_copy_elsewhere_is_the_same_experiment(tmp_path):
    for name in ("digits_mlp", "mnist_mlp"):
        path = available()[name]
        shutil.copy(path, tmp_path / path.name)
        assert load(tmp_path / path.name).experiment == load(path).experiment
