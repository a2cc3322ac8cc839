"""The README's examples run, the first of them in a few lines, on a tiny MNIST."""

import re
from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl.data.prepare import prepare
from jdl.models import MLP
from tests.data.originals import write_mnist

README = (Path(__file__).parents[1] / "README.md").read_text()
SCRIPT, EXPERIMENT, USE = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    write_mnist(tmp_path / "raw")
    prepare("mnist", raw=tmp_path / "raw", data_dir=tmp_path / "sets", report=print)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))


def test_the_first_script_takes_no_more_than_fifteen_lines_and_scores_a_network(mnist, capsys):
    assert len(SCRIPT.splitlines()) <= 15
    names = {}
    exec(compile(SCRIPT, "README.md", "exec"), names)
    assert names["run"].steps == 3  # five passes over 18 images, in batches of 32
    assert set(names["run"].result["metrics"]["test"]) == {"accuracy", "loss", "nll"}
    assert str(names["run"].result["metrics"]["test"]) in capsys.readouterr().out


def test_the_experiment_is_one(mnist):
    names = {}
    exec(compile(EXPERIMENT, "README.md", "exec"), names)
    assert isinstance(names["experiment"], jdl.Experiment)


def test_the_ways_to_use_it_from_python(monkeypatch, capsys):
    changes = {"epochs": 1}
    plain = jdl.override
    monkeypatch.setattr(jdl, "override", lambda e, c: plain(e, {**c, **changes}), raising=False)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    names = {
        "images": np.zeros((2, 8, 8, 1), np.uint8),
        "model": MLP(widths=(4,), features=2),
        "x": x,
        "y": (x[:, 0] > 0).astype(int),
    }
    exec(compile(USE, "README.md", "exec"), names)
    assert "accuracy" in capsys.readouterr().out
    assert names["run"].predict(x).shape == (40, 2)
