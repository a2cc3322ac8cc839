"""Costs of a run are recorded, and kept when it resumes."""

import json
import resource
import time

import jax
import pytest

import jdl
from jdl.trainer.environment import peak_bytes
from jdl.trainer.training_run import TrainingRun
from tests.interruptions import Killed, interrupt_at, make_experiment


@pytest.fixture
def slow(monkeypatch):
    """Every batch of a run comes 0.02 seconds late."""
    step_inputs = TrainingRun.step_inputs

    def late(self, start):
        for step_input in step_inputs(self, start):
            time.sleep(0.02)
            yield step_input

    monkeypatch.setattr(TrainingRun, "step_inputs", late)


@pytest.mark.parametrize("together", [1, 3])
def test_waiting_for_slow_input_is_counted(slow, plain, tmp_path, together):
    experiment = make_experiment(
        steps=6, hooks=(), runtime=jdl.Runtime(steps_per_execution=together, log_every=5)
    )
    result = jdl.train(experiment, tmp_path / "run").result
    assert 6 * 0.02 < result["input_seconds"] < result["seconds"]
    assert result["input_seconds"] + result["compile_seconds"] < result["seconds"], "not both"
    plainly = json.loads((plain / "result.json").read_text())
    assert plainly["input_seconds"] + plainly["compile_seconds"] < plainly["seconds"]


def test_waiting_goes_on_where_it_stood(slow, tmp_path):
    with pytest.raises(Killed):
        jdl.train(interrupt_at(make_experiment(), 9), tmp_path / "run")
    (meta,) = (tmp_path / "run/checkpoints").glob("8.*/meta.json")
    assert json.loads(meta.read_text())["input_seconds"] > 8 * 0.02
    result = jdl.train(make_experiment(), tmp_path / "run").result
    (meta,) = (tmp_path / "run/checkpoints").glob("14.*/meta.json")
    kept = json.loads(meta.read_text())["input_seconds"]
    assert result["input_seconds"] == pytest.approx(kept, abs=1e-3)
    assert kept > 14 * 0.02


def test_a_result_says_what_was_traced_and_how_large_it_was(plain):
    result = json.loads((plain / "result.json").read_text())
    assert result["traces"]["update"] == 1
    assert result["traces"]["evaluate"] == 1
    assert result["parameters"] == 16 * 3 + 3


class Device:
    """An accelerator that reports its memory in use."""

    def __init__(self, stats):
        self.process_index, self._stats = jax.process_index(), stats

    def memory_stats(self):
        return self._stats


def test_memory_is_that_of_the_fullest_device_or_of_the_process():
    local = [Device({"peak_bytes_in_use": size}) for size in (5, 7, 6)]
    assert peak_bytes(local) == 7
    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for silent in ([], [Device(None)], [Device({})], jax.devices()):
        assert least <= peak_bytes(silent) < 2**40
