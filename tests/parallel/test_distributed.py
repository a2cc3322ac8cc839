"""Two processes with a device each equal one process with two devices, also after a restart."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import chex
import jax
import pytest

import jdl
from jdl.config.experiment_file import load
from jdl.files import read_rows
from jdl.parallel import DataParallel, FullySharded
from tests.flags import CHEAP

EXPERIMENT = """
from jdl import Experiment, Runtime
from jdl.data import Digits, RandomFlip, Scale
from jdl.hooks import Checkpoint, Evaluate
from jdl.metrics import AUROC, ConfusionMatrix, MacroF1
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.tasks import Classification

experiment = Experiment(
    model=MLP(widths=(32,)),
    task=Classification(metrics=(AUROC(), ConfusionMatrix(), MacroF1())),
    data=Digits(device_transforms=(RandomFlip(), Scale(divisor=16.0))),
    optimizer=SGD(0.1, momentum=0.9),
    hooks=(Evaluate(every=2), Checkpoint(every=2)),
    steps=8,
    batch_size=14,
    runtime=Runtime(log_every=1),
)
"""
# Resumes twice the run that the command began.
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from sklearn.metrics import f1_score, roc_auc_score
import jdl
from jdl.parallel import FullySharded, Pmap

file = jdl.load("small.py")
for strategy, steps in ((FullySharded(), 6), (Pmap(), 8)):
    experiment = replace(file.experiment, strategy=strategy, steps=steps)
    run = jdl.train(experiment, Path("joined"), file=file)
    if isinstance(strategy, FullySharded):  # its predictions are whole in both processes
        data, chances = run.pipeline("validation"), []
        for batch in data.evaluation_batches(14, run.shard):
            chances.append(jax.device_get(run.compiled.predict(run.state, run.compiled.put(batch))))
        label, chances = data.arrays["label"], np.concatenate(chances)
        assert len(label) < len(chances), "some rows are padding"
        chances, found = chances[: len(label)], run.evaluate("validation")
        assert abs(found["auroc"] - roc_auc_score(label, chances, multi_class="ovr")) < 1e-6
        assert abs(found["macro_f1"] - f1_score(label, chances.argmax(1), average="macro")) < 1e-6
        assert found["confusion_matrix"].sum() == len(label)
    kernel = run.state.params["Dense_0"]["kernel"].addressable_shards
    print(type(strategy).__name__, jax.device_count(), [s.data.shape for s in kernel], flush=True)
"""


def launch(folder, *command):
    """Runs a command in two processes with one CPU device each; what they print.

    Words of the command may hold {address} of the first process and the {index} of each.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": CHEAP, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, *(word.format(address=address, index=index) for word in command)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        printed = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    return printed


def rows(workdir):
    """Rows of a run without what may differ."""
    return [
        (r["step"], r["epoch"], r["split"], r["metrics"])
        for r in read_rows(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "small.py").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The same run in this process, on two devices, never stopped."""
    file = load(folder / "small.py")
    assert jax.device_count() == 2
    return jdl.train(file.experiment, folder / "alone", file=file)


def check_equal(alone, workdir, devices=2):
    """Rows and parameters of a run by two processes, read here by one, are those of `alone`."""
    expected, found = rows(alone.workdir), rows(workdir)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert {row[2] for row in found} == {"train", "validation"}
    for (*_, one), (*_, other) in zip(expected, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    read = jdl.open(workdir, alone.experiment)
    assert int(read.state.step) == 8
    chex.assert_trees_all_close(read.state.params, alone.state.params, atol=1e-5)
    for split, metrics in alone.result["metrics"].items():
        assert read.result["metrics"][split] == pytest.approx(metrics, rel=1e-5)
    assert read.result["arrays"] == alone.result["arrays"]
    assert read.result["device"] == f"{devices} x cpu"


def test_two_processes_equal_one_with_two_devices_under_every_strategy(folder, alone):
    """The command begins a run that new processes take up twice, each from what both have saved."""
    command = ["-m", "jdl", "train", "small.py", "--workdir", "joined", "--steps", "4"]
    joined = ["--coordinator", "{address}", "--processes", "2", "--process", "{index}"]
    launch(folder, *command, *joined, "--strategy", "data_parallel")
    for row, expected in zip(rows(folder / "joined"), rows(alone.workdir)[:6], strict=True):
        assert (row[:3], row[3]) == (expected[:3], pytest.approx(expected[3], rel=1e-5))
    (folder / "script.py").write_text(SCRIPT)
    printed = launch(folder, "script.py", "{address}", "{index}")
    for text in printed:
        assert "FullySharded 2 [(32, 32)]" in text, "half of the kernel in each process"
        assert "Pmap 2 [(1, 64, 32)]" in text
    for line in ("resuming from step 4 of 6", "resuming from step 6 of 8"):
        assert [line in text for text in printed] == [True, False], "only the first one talks"
    check_equal(alone, folder / "joined")


def test_going_on_with_other_devices_ends_like_the_run_never_stopped(folder, alone):
    file = load(folder / "small.py")
    for strategy, steps in ((FullySharded(2), 4), (DataParallel(1), 8)):
        experiment = replace(file.experiment, strategy=strategy, steps=steps)
        jdl.train(experiment, folder / "switch", file=file)
    check_equal(alone, folder / "switch", devices=1)
