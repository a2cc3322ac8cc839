"""Optax transformations and schedules in place of jdl's optimizers."""

import subprocess
import sys

import flax.linen as nn
import numpy as np
import optax
import pytest

import jdl
from jdl import UserError
from jdl.config.overrides import flatten, override
from jdl.data import Digits
from jdl.optimizers import SGD, Adam, Cosine

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32)


def trained(optimizer, **settings):
    return jdl.fit(nn.Dense(1), X, Y, epochs=10, optimizer=optimizer, hooks=(), **settings)


def test_a_transformation_is_taken_as_it_is():
    ours = trained(SGD(0.1)).params
    theirs = trained(optax.sgd(0.1)).params
    np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])


def test_a_schedule_of_optax_takes_the_place_of_the_learning_rate():
    schedule = optax.cosine_decay_schedule(0.1, 10)
    theirs = trained(SGD(schedule)).params["kernel"]
    np.testing.assert_array_equal(theirs, trained(optax.sgd(schedule)).params["kernel"])
    np.testing.assert_allclose(theirs, trained(SGD(0.1, schedule=Cosine())).params["kernel"])
    with pytest.raises(UserError, match=r"SGD\.schedule must be left out"):
        SGD(schedule, schedule=Cosine())


def test_one_optimizer_per_part_of_the_model():
    parts = {"kernel": optax.adam(0.1), "bias": optax.set_to_zero()}
    run = trained(optax.partition(parts, lambda params: {name: name for name in params}))
    assert run.params["bias"][0] == 0
    assert np.abs(run.params["kernel"]).max() > 0.5


def test_a_resumed_run_has_the_same_transformation(tmp_path):
    first = trained(optax.adam(0.1), workdir=tmp_path / "run")
    again = trained(optax.adam(0.1), workdir=tmp_path / "run")
    assert again.result["params_sha256"] == first.result["params_sha256"]
    with pytest.raises(UserError, match=r"other settings .*optimizer"):
        trained(optax.adam(0.2), workdir=tmp_path / "run")


OPTIMIZERS = """
import optax
from jdl.config.functions import identify
print(identify(optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(0.1, 0.0, 9)))))
"""


def test_equal_closures_have_one_identity_in_every_process():
    found = {
        subprocess.run(
            [sys.executable, "-c", OPTIMIZERS], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optax.adam(0.1), optax.adam(0.2)),
        (optax.adam(0.1), optax.adam(0.1, b1=0.8)),
        (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)),
        (
            optax.chain(optax.clip(1.0), optax.sgd(0.1)),
            optax.chain(optax.clip(2.0), optax.sgd(0.1)),
        ),
        (Adam(optax.linear_schedule(0.1, 0, 5)), Adam(optax.linear_schedule(0.1, 0, 6))),
    ],
)
def test_different_transformations_have_different_records(one, other):
    def recorded(optimizer):
        return flatten(
            jdl.Experiment(model=nn.Dense(1), data=Digits(), epochs=1, optimizer=optimizer)
        )

    assert recorded(one) != recorded(other)
    assert recorded(one) == recorded(one)


def test_overrides_replace_a_transformation_but_have_no_fields_in_it():
    plain = jdl.Experiment(model=nn.Dense(1), data=Digits(), epochs=1, optimizer=optax.sgd(0.1))
    assert override(plain, {"optimizer": "adam"}).optimizer == Adam()
    with pytest.raises(UserError, match=r"GradientTransformation.* has no field 'learning_rate'"):
        override(plain, {"optimizer.learning_rate": "0.1"})
    scheduled = override(plain, {"optimizer": Adam(optax.constant_schedule(0.1))})
    assert override(scheduled, {"optimizer.learning_rate": "0.1"}).optimizer == Adam(0.1)
