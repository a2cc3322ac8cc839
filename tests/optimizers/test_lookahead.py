"""Lookahead against Optax's, and with a decay that grows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.optimizers import SGD, Adam, Lookahead, Partition
from tests.optimizer_steps import network, run, values
from tests.runs import make_experiment


def gradients(params, count):
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(values(i, *x.shape)), params) for i in range(count)
    ]


def test_lookahead_is_optax_s():
    params = network()
    given = gradients(params, 8)
    found, _ = run(SGD(0.1, momentum=0.9, lookahead=Lookahead(period=3, decay=0.4)), params, given)
    theirs = optax.lookahead(optax.sgd(0.1, 0.9), sync_period=3, slow_step_size=0.6)
    both = optax.LookaheadParams.init_synced(params)
    state = theirs.init(both)
    for mine, gradient in zip(found, given, strict=True):
        updates, state = theirs.update(gradient, state, both)
        both = optax.apply_updates(both, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, both.fast
        )


def test_the_decay_grows_from_the_start_on():
    params = {"w": jnp.array([1.0, -2.0])}
    (gradient,) = gradients(params, 1)
    lookahead = Lookahead(period=2, decay=0.8, power=2.0, start=0.4)
    found, _ = run(SGD(0.1, lookahead=lookahead), params, [gradient] * 10)
    weight = slow = np.array([1.0, -2.0])
    for step, mine in enumerate(found, start=1):
        weight = weight - 0.1 * np.asarray(gradient["w"])
        if step <= 4:
            slow = weight
        elif step % 2 == 0:
            decay = 0.8 * (step / 10) ** 2
            weight = slow = decay * slow + (1 - decay) * weight
        np.testing.assert_allclose(mine["w"], weight, rtol=1e-5)


def test_a_resumed_run_keeps_its_slow_weights(tmp_path):
    optimizer = Partition(parts=(("*", Adam(0.1)),), lookahead=Lookahead(period=3))
    experiment = make_experiment(Checkpoint(), optimizer=optimizer, steps=8)
    whole = jdl.train(experiment, tmp_path / "whole")
    jdl.train(dataclasses.replace(experiment, steps=4), tmp_path / "run")
    resumed = jdl.train(experiment, tmp_path / "run")
    assert resumed.result["params_sha256"] == whole.result["params_sha256"]
    plain = dataclasses.replace(optimizer, lookahead=None)
    other = jdl.train(dataclasses.replace(experiment, optimizer=plain))
    assert other.result["params_sha256"] != whole.result["params_sha256"]


@pytest.mark.parametrize("field", [{"period": 0}, {"decay": 1.0}, {"power": -1.0}, {"start": 1.0}])
def test_wrong_values_are_named(field):
    (name,) = field
    with pytest.raises(UserError, match=rf"Lookahead\.{name} must be"):
        Lookahead(**field)
