"""Schedules against closed forms, and the reduction of the rate on a plateau."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.errors import UserError
from jdl.optimizers import (
    SGD,
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    RangeTest,
    ReduceOnPlateau,
    Step,
)
from tests.optimizer_steps import SCHEDULES, run


def cosine(share):
    return (1 + np.cos(np.pi * share)) / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), lambda t: 1.0),
        (Constant(warmup=0.25), lambda t: min(t / 10, 1)),
        (Step(), lambda t: 0.1 ** ((t >= 20) + (t >= 30))),
        (Step(at=(0.3, 0.5, 0.9), factor=0.5, warmup=0.25),
         lambda t: t / 10 if t < 10 else 0.5 ** ((t >= 12) + (t >= 20) + (t >= 36))),
        (Exponential(end=0.01), lambda t: 0.01 ** (t / 40)),
        (Exponential(end=0.5, warmup=0.25), lambda t: t / 10 if t < 10 else 0.5 ** ((t - 10) / 30)),
        (Linear(), lambda t: 1 - t / 40),
        (Linear(end=0.2, warmup=0.25), lambda t: t / 10 if t < 10 else 1 - 0.8 * (t - 10) / 30),
        (Linear(until=0.5), lambda t: np.interp(t, [0, 20], [1, 0])),
        (Linear(start=0.2, end=0.07, warmup=0.25, until=0.75),
         lambda t: np.interp(t, [0, 10, 30], [0.2, 1, 0.07])),
        (Cosine(), lambda t: cosine(t / 40)),
        (Cosine(end=0.1, warmup=0.25),
         lambda t: t / 10 if t < 10 else 0.1 + 0.9 * cosine((t - 10) / 30)),
        (OneCycle(), lambda t: 0.04 + 0.96 * (1 - cosine(t / 12)) if t < 12
         else 4e-6 + (1 - 4e-6) * cosine((t - 12) / 28)),
        (OneCycle(warmup=0.5, div_factor=10.0, final_div_factor=2.0),
         lambda t: 0.1 + 0.9 * (1 - cosine(t / 20)) if t < 20
         else 0.05 + 0.95 * cosine((t - 20) / 20)),
        (RangeTest(start=1e-4), lambda t: 1e-4 ** (1 - t / 39)),
        (RangeTest(start=0.01, warmup=0.25),
         lambda t: 0.01 * t / 10 if t < 10 else 0.01 ** (1 - (t - 10) / 29)),
        (ReduceOnPlateau(warmup=0.25), lambda t: min(t / 10, 1)),
    ],
)  # fmt: skip
def test_schedules_equal_their_closed_forms(schedule, expected):
    rate = SGD(0.3, schedule=schedule).rate(40)
    rates = jax.jit(jax.vmap(lambda t: rate(t) + 0.0 * t))(jnp.arange(41))
    np.testing.assert_allclose(rates, [0.3 * expected(t) for t in range(41)], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_are_rates_in_the_shortest_runs(steps):
    rates = [SGD(1.0, schedule=schedule).rate(steps) for schedule in SCHEDULES]
    found = jax.jit(lambda: jnp.asarray([[rate(t) for t in range(steps)] for rate in rates]))()
    for schedule, row in zip(SCHEDULES, np.asarray(found), strict=True):
        assert np.isfinite(row).all(), schedule
        assert row.min() >= 0, schedule
        assert 0 < row.max() <= 1, schedule


def test_drops_that_fall_on_one_step_are_all_taken():
    rate = SGD(1.0, schedule=Step(at=(0.5, 0.6))).rate(2)
    np.testing.assert_allclose(np.array([rate(0), rate(1)]), [1.0, 0.01], rtol=1e-6)


def test_the_rate_counts_optimizer_steps_from_zero():
    schedule = Linear(warmup=0.2)
    gradients = [{"kernel": jnp.ones((1, 1))}] * 10
    trajectory, _ = run(SGD(1.0, schedule=schedule), {"kernel": jnp.zeros((1, 1))}, gradients)
    steps = -np.diff([0.0, *(float(params["kernel"][0, 0]) for params in trajectory)])
    np.testing.assert_allclose(steps, [0, 0.5, *(1 - np.arange(8) / 8)], atol=1e-6)


def scales(schedule, losses):
    """The rate that each step took, under a peak of 1."""
    params = {"kernel": jnp.zeros((1, 1))}
    gradients = [{"kernel": jnp.ones((1, 1))}] * len(losses)
    trajectory, _ = run(SGD(1.0, schedule=schedule), params, gradients, losses)
    return -np.diff([0.0, *(float(params["kernel"][0, 0]) for params in trajectory)])


def test_the_rate_falls_after_patience_runs_out():
    plateau = ReduceOnPlateau(factor=0.5, patience=3, accumulation_size=2)
    # The first average of two losses is the best so far; three more without improvement follow.
    expected = [1.0] * 7 + [0.5] * 6 + [0.25] * 2
    np.testing.assert_allclose(scales(plateau, [1.0] * 15), expected, rtol=1e-5)
    np.testing.assert_allclose(scales(plateau, [0.9**t for t in range(15)]), 1.0, rtol=1e-5)
    # Averages are compared: losses that alternate about a falling mean are no plateau.
    alternating = [0.9**t + (0.3 if t % 2 else -0.3) for t in range(15)]
    np.testing.assert_allclose(scales(plateau, alternating), 1.0, rtol=1e-5)


def test_cooldown_delays_min_scale_bounds_and_rtol_hastens_the_fall():
    plateau = ReduceOnPlateau(factor=0.5, patience=2, accumulation_size=1, cooldown=3)
    expected = [1.0] * 2 + [0.5] * 5 + [0.25] * 5
    np.testing.assert_allclose(scales(plateau, [1.0] * 12), expected, rtol=1e-5)
    slowly = [0.99**t for t in range(12)]
    np.testing.assert_allclose(scales(plateau, slowly), 1.0, rtol=1e-5)
    demanding = dataclasses.replace(plateau, rtol=0.05)
    np.testing.assert_allclose(scales(demanding, slowly)[:3], [1.0, 1.0, 0.5], rtol=1e-5)
    bounded = dataclasses.replace(plateau, cooldown=0, min_scale=0.4)
    expected = [1.0] * 2 + [0.5] * 2 + [0.4] * 4
    np.testing.assert_allclose(scales(bounded, [1.0] * 8), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup=1.0), r"Cosine\.warmup must be a fraction of the run.*; it is 1\.0"),
        (lambda: OneCycle(warmup=-0.1), r"OneCycle\.warmup must be"),
        (lambda: OneCycle(div_factor=0.5), r"OneCycle\.div_factor must be"),
        (lambda: OneCycle(final_div_factor=0.0), r"OneCycle\.final_div_factor must be"),
        (lambda: Cosine(end=-0.1), r"Cosine\.end must be"),
        (lambda: Linear(end=1.1), r"Linear\.end must be"),
        (lambda: Linear(start=0.5), r"Linear\.start must be 0 without a warm-up"),
        (lambda: Linear(until=0.2, warmup=0.3), r"Linear\.until must be .*above the warm-up"),
        (lambda: Exponential(end=0.0), r"Exponential\.end must be"),
        (lambda: RangeTest(start=1.0), r"RangeTest\.start must be"),
        (lambda: Step(at=(0.5, 0.4)), r"Step\.at must be increasing fractions.*; it is \(0\.5, 0"),
        (lambda: Step(at=(0.2,), warmup=0.3), r"Step\.at must be .*above the warm-up"),
        (lambda: Step(at=(30.0, 60.0)), r"Step\.at must be .*below 1"),
        (lambda: Step(factor=0.0), r"Step\.factor must be"),
        (lambda: ReduceOnPlateau(factor=1.0), r"ReduceOnPlateau\.factor must be"),
        (lambda: ReduceOnPlateau(patience=0), r"ReduceOnPlateau\.patience must be"),
        (lambda: ReduceOnPlateau(cooldown=-1), r"ReduceOnPlateau\.cooldown must be"),
        (lambda: ReduceOnPlateau(accumulation_size=0), r"\.accumulation_size must be"),
        (lambda: ReduceOnPlateau(min_scale=2.0), r"ReduceOnPlateau\.min_scale must be"),
        (lambda: ReduceOnPlateau(rtol=0.0), r"ReduceOnPlateau\.rtol must be"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
