"""What held a run back is recorded, and kept when it goes on."""

import dataclasses
import json
import resource
import time
from dataclasses import dataclass

import jax
import pytest

import jdl
from jdl import record
from tests.breaks import Killed, broken, make_experiment
from tests.checkpoints import sign


@dataclass(frozen=True)
class Slow:
    """A host transform that takes its time."""

    seconds: float = 0.02

    def __call__(self, example):
        time.sleep(self.seconds)
        return example


def slow(**changes):
    return make_experiment(data={"transforms": (Slow(),), "pipeline": "grain"}, **changes)


def test_waiting_for_slow_input_is_counted(tmp_path):
    quick = jdl.train(make_experiment(), tmp_path / "quick").result
    waited = jdl.train(slow(steps=6), tmp_path / "slow").result
    # Two threads read 6 batches of 8 examples, some of them while the step compiles.
    assert 0.05 < waited["input_seconds"] < waited["seconds"]
    assert quick["input_seconds"] < 0.05


def test_several_steps_at_once_wait_once(tmp_path):
    experiment = dataclasses.replace(slow(steps=6, hooks=()), steps_per_dispatch=3)
    assert jdl.train(experiment, tmp_path / "run").result["input_seconds"] > 0.05


def test_waiting_goes_on_where_it_stood(tmp_path):
    with pytest.raises(Killed):
        jdl.train(broken(slow(), 9), tmp_path / "run")
    (meta,) = (tmp_path / "run/checkpoints").glob("8.*/meta.json")
    before = json.loads(meta.read_text())["input_seconds"]
    result = jdl.train(slow(), tmp_path / "run").result
    assert 0.05 < before < result["input_seconds"]
    (last,) = (tmp_path / "run/checkpoints").glob("14.*/meta.json")
    kept = json.loads(last.read_text())["input_seconds"]
    assert result["input_seconds"] == pytest.approx(kept, abs=1e-3)


def test_a_checkpoint_that_does_not_say_goes_on(plain, tmp_path):
    with pytest.raises(Killed):
        jdl.train(broken(make_experiment(), 9), tmp_path / "run")
    for meta in (tmp_path / "run/checkpoints").glob("*/meta.json"):
        told = json.loads(meta.read_text())
        del told["input_seconds"]
        meta.write_text(json.dumps(told))
        sign(meta.parent)
    result = jdl.train(make_experiment(), tmp_path / "run").result
    expected = json.loads((plain / "result.json").read_text())
    assert result["params_sha256"] == expected["params_sha256"]
    assert result["input_seconds"] >= 0


def test_a_result_says_what_was_traced_and_how_large_it_was(plain):
    result = json.loads((plain / "result.json").read_text())
    assert result["traces"]["update"] == 1
    assert result["traces"]["evaluate"] == 1
    assert result["parameters"] == 16 * 3 + 3


class Device:
    """An accelerator that says how much memory was in use."""

    def __init__(self, stats):
        self.process_index, self._stats = jax.process_index(), stats

    def memory_stats(self):
        return self._stats


def test_memory_is_that_of_the_fullest_device_or_of_the_process():
    told = [Device({"peak_bytes_in_use": size}) for size in (5, 7, 6)]
    assert record.peak_bytes(told) == 7
    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for silent in ([], [Device(None)], [Device({})], jax.devices()):
        assert least <= record.peak_bytes(silent) < 2**40
