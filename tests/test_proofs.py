"""Experiments on digits: games, noise in losses, boxes and masks, a teacher, coupled rows.

Each is equal under every strategy and accumulation, or refuses it, and is bit-equal after kills:

    pytest -m slow -n 0 tests/test_proofs.py
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from tests import kill_resume

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "experiments"
NAMES = [
    "digits_contrastive",
    "digits_denoiser",
    "digits_detection",
    "digits_gan",
    "digits_mean_teacher",
    "digits_segmentation",
]
STEPS = 4
KILLED_STEPS = 300
"""Of the runs that are killed: enough for kills to meet training, and not the start alone."""


def losses(name, **changes):
    """Metrics of the first steps, one row each."""
    experiment = jdl.load(FOLDER / f"{name}.py").experiment
    settings = {"steps": STEPS, "epochs": None, "hooks": (), "strategy": Single()}
    runtime = dataclasses.replace(experiment.runtime, log_every=1)
    settings = {**settings, "runtime": runtime, "final_train_evaluation": False, **changes}
    run = jdl.train(dataclasses.replace(experiment, **settings))
    return {k: v for k, v in run.history["train"].items() if k not in ("step", "epoch")}


@pytest.fixture(scope="module", params=NAMES)
def expected(request):
    return request.param, losses(request.param)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": DataParallel(2)},
        {"strategy": FullySharded(2)},
        {"strategy": Pmap(2)},
        {"num_microbatches": 2},
    ],
    ids=["data", "fsdp", "pmap", "accumulation"],
)
def test_losses_are_equal_or_refused(expected, changes):
    name, rows = expected
    if name == "digits_contrastive" and "num_microbatches" in changes:
        with pytest.raises(UserError, match="couples all rows"):
            losses(name, **changes)
        return
    found = losses(name, **changes)
    assert found.keys() == rows.keys()
    for key, values in rows.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments_it_ends_bit_equal(name, tmp_path):
    job = kill_resume.Job(experiment=name, every=20, extra=("--steps", str(KILLED_STEPS)))
    assert kill_resume.check(job, tmp_path, runs=2, kills=3, parallel=1) == []
