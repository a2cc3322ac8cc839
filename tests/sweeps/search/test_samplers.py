"""The benchmark of samplers counts trials and wins correctly."""

import json

import numpy as np
import pytest

from benchmarks import samplers
from tests.sweeps.search.test_command import FILE

pytest.importorskip("optuna", reason="optuna is not installed")


def row(sampler, *values):
    return {"sampler": sampler, "best": np.minimum.accumulate(values).tolist()}


def test_wins_are_counted_against_the_median_of_random():
    ends = [("random", 3.0), ("tpe", 1.0), ("random", 1.0), ("tpe", 2.5), ("random", 2.0)]
    rows = [row(name, 9.0, end, 10.0) for name, end in ends]
    lines = samplers.summary(rows)
    assert lines == [
        "random: best 2.0000 [1.5000, 2.5000] after 3",
        "tpe: best 1.7500 [1.3750, 2.1250] after 3; below random's median in 1 of 2 searches",
    ]


def test_a_comparison_holds_the_best_value_after_each_trial(tmp_path, monkeypatch, capsys):
    (tmp_path / "searched.py").write_text(FILE)
    # In this process: others would first have to import JAX.
    monkeypatch.setattr(samplers, "ProcessPoolExecutor", InThisProcess)
    samplers.main(
        str(tmp_path / "searched.py"), out=tmp_path, samplers=("random",), repeats=2, trials=2
    )
    rows = [json.loads(line) for line in (tmp_path / "samplers.jsonl").read_text().splitlines()]
    assert [each["seed"] for each in rows] == [0, 1]
    for each in rows:
        lines = (tmp_path / f"searches/random-{each['seed']}/study.jsonl").read_text().splitlines()
        values = [json.loads(line)["value"] for line in lines]
        assert each["best"] == [values[0], min(values)]
    assert rows[0]["best"] != rows[1]["best"]
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")
    assert "random: best" in capsys.readouterr().out


class InThisProcess:
    """Stands in for a pool of processes."""

    def __init__(self, jobs, context):
        del jobs, context

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)
