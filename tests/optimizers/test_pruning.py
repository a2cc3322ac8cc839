"""Magnitude pruning during training."""

import dataclasses

import jax
import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.optimizers import SGD, Adam, Partition, Pruning
from tests.interruptions import InterruptAt, Killed
from tests.optimizer_steps import network, run, values
from tests.runs import make_experiment

KERNELS = (("Dense_0", "kernel"), ("Conv_0", "kernel"), ("Embed_0", "embedding"))


def kernels(params):
    return np.concatenate([np.ravel(params[module][name]) for module, name in KERNELS])


def trajectory(optimizer, count):
    params = network()
    given = [
        jax.tree.map(lambda x, i=i: 0.3 * values(i, *x.shape), params) for i in range(1, count + 1)
    ]
    return run(optimizer, params, given)[0]


def test_the_share_of_zeros_follows_the_paper_s_schedule():
    """Zhu and Gupta (2017), equation 1, at every second step from 2 to 8 of 10."""
    found = trajectory(SGD(0.1, pruning=Pruning(sparsity=0.6, start=0.2, end=0.8, every=2)), 10)
    plain = trajectory(SGD(0.1), 10)
    for step, params in enumerate(found, start=1):
        due = min(max(step // 2 * 2, 2), 8)
        expected = 0.6 * (1 - (1 - (due - 2) / 6) ** 3)
        weights = kernels(params)
        assert (weights == 0).sum() == int(np.floor(expected * weights.size + 0.5)), step
        for module in ("Heads_0", "LayerNorm_0"):
            np.testing.assert_array_equal(
                params[module]["scale"], plain[step - 1][module]["scale"], f"{step} {module}"
            )
    first, second = (kernels(found[step]) for step in (2, 3))
    moved = kernels(plain[3]) - kernels(plain[2])
    candidates = np.abs(first + moved)  # what stands before the choice at step 4
    assert candidates[second == 0].max() < candidates[second != 0].min(), "the smallest go"


def test_a_run_ends_sparse_and_resumes_to_the_bit(tmp_path):
    pruning = Pruning(sparsity=0.5, start=0.1, end=0.6, every=2)
    experiment = make_experiment(Checkpoint(every=2), optimizer=Adam(0.1, pruning=pruning), steps=8)
    whole = jdl.train(experiment, tmp_path / "whole")
    assert (np.asarray(whole.params["Dense_0"]["kernel"]) == 0).sum() == 6
    broken = dataclasses.replace(experiment, hooks=(*experiment.hooks, InterruptAt(at=5)))
    with pytest.raises(Killed):
        jdl.train(broken, tmp_path / "run")
    resumed = jdl.train(experiment, tmp_path / "run")
    assert resumed.result["params_sha256"] == whole.result["params_sha256"]


def test_a_part_of_a_model_is_pruned_alone():
    parts = (("Dense_0", SGD(0.1, pruning=Pruning(every=1))), ("*", SGD(0.1)))
    last = trajectory(Partition(parts=parts), 10)[-1]
    assert (np.asarray(last["Dense_0"]["kernel"]) == 0).mean() == pytest.approx(0.9, abs=0.03)
    assert (np.asarray(last["Conv_0"]["kernel"]) != 0).all()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Pruning(sparsity=1.0), r"Pruning\.sparsity must be a share"),
        (lambda: Pruning(start=0.8), r"Pruning\.end must be above start"),
        (lambda: Pruning(every=0), r"Pruning\.every must be at least 1"),
        (lambda: Adam(0.1, pruning=Pruning(), ema_decay=0.9), r"Adam\.pruning must be None with"),
        (
            lambda: Partition(
                parts=(("*", SGD(0.1, pruning=Pruning())),), lr_multipliers=(("Dense_0", 0.1),)
            ),
            "after its pruning has pruned the parameters",
        ),
    ],
)
def test_wrong_values_are_named(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
