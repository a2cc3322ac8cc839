"""Quantile forecasts against NumPy and SciPy, and models that see no later step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import Forecaster, RecurrentEncoder, TemporalConvNet, TransformerEncoder
from jdl.tasks import QuantileForecast

RNG = np.random.default_rng(0)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def batch():
    value = RNG.normal(5, 2, (6, 4, 2)).astype(np.float32)
    offset, scale = RNG.normal(5, 1, (6, 2)), RNG.uniform(0.5, 2, (6, 2))
    observed = RNG.random((6, 4, 2)) < 0.8
    found = {
        "past": RNG.normal(size=(6, 8, 5)).astype(np.float32),
        "future": RNG.normal(size=(6, 4, 1)).astype(np.float32),
        "static": RNG.normal(size=(6, 3)).astype(np.float32),
        "value": value, "offset": offset.astype(np.float32), "scale": scale.astype(np.float32),
        "y": ((value - offset[:, None]) / scale[:, None]).astype(np.float32),
        "observed": observed,
        "naive_error": RNG.uniform(1, 2, (6, 2)).astype(np.float32),
        "mask": np.array([1, 1, 0, 1, 1, 0], bool),
    }  # fmt: skip
    return {name: jnp.array(array) for name, array in found.items()}


@pytest.mark.parametrize("distribution", [None, "normal", "laplace"])
def test_metrics_are_those_of_a_direct_computation(distribution):
    x = batch()
    task = QuantileForecast(quantiles=LEVELS, distribution=distribution, season=3)
    count = 2 if distribution else len(LEVELS)
    outputs = RNG.normal(size=(6, 4, 2 * count)).astype(np.float32)
    given = x
    found = compute(task.loss_and_metrics(jnp.array(outputs), given))
    x = jax.tree.map(np.asarray, given)
    kept = x["observed"] & x["mask"][:, None, None]
    parts = outputs.reshape(6, 4, 2, count)
    if distribution:
        spread = 1e-3 + np.log1p(np.exp(parts[..., 1]))
        law = {"normal": scipy.stats.norm, "laplace": scipy.stats.laplace}[distribution]
        scaled = np.stack([law.ppf(q, parts[..., 0], spread) for q in LEVELS], -1)
        loss = -law.logpdf(x["y"], parts[..., 0], spread)
    else:
        scaled = np.sort(parts, -1)
        error = x["y"][..., None] - parts
        loss = np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(-1)
    own = x["offset"][:, None, :, None] + x["scale"][:, None, :, None] * scaled
    np.testing.assert_allclose(found["loss"], loss[kept].mean(), rtol=1e-5)
    error = np.abs(own[..., 2] - x["value"])
    np.testing.assert_allclose(found["mae"], error[kept].mean(), rtol=1e-5)
    relative = error / x["naive_error"][:, None]
    np.testing.assert_allclose(found["mase"], relative[kept].mean(), rtol=1e-5)
    inside = (own[..., 0] <= x["value"]) & (x["value"] <= own[..., -1])
    np.testing.assert_allclose(found["coverage"], inside[kept].mean(), rtol=1e-5)
    total = 0
    for index, level in enumerate(LEVELS):
        error = x["value"] - own[..., index]
        pinball = np.where(error > 0, level * error, (level - 1) * error)[kept].sum()
        total += 2 * pinball / np.abs(x["value"])[kept].sum()
    np.testing.assert_allclose(found["wql"], total / len(LEVELS), rtol=1e-5)
    season = x["past"][:, [5, 6, 7, 5], :2] * x["scale"][:, None] + x["offset"][:, None]
    wanted = np.abs(season - x["value"])[kept].mean()
    np.testing.assert_allclose(found["mae_last_season"], wanted, rtol=1e-5)
    prediction = task.to_prediction(jnp.array(outputs), given)
    np.testing.assert_allclose(prediction, own, rtol=1e-4, atol=1e-4)
    wide = dataclasses.replace(task, interval_scale=2.0).to_prediction(jnp.array(outputs), given)
    middle = own[..., 2:3]
    np.testing.assert_allclose(wide, middle + 2 * (own - middle), rtol=1e-4, atol=1e-4)
    shown = task.format_prediction(np.asarray(prediction)[0], ("a", "b"))["prediction"]
    np.testing.assert_allclose(shown["b"]["0.5"], own[0, :, 1, 2], rtol=1e-4)


def test_values_that_are_not_observed_change_nothing():
    x = batch()
    task = QuantileForecast(quantiles=LEVELS)
    outputs = jnp.array(RNG.normal(size=(6, 4, 10)).astype(np.float32))
    value = jnp.where(x["observed"], x["value"], 1e6)
    y = jnp.where(x["observed"], x["y"], 1e6)
    found = [compute(task.loss_and_metrics(outputs, {**x, **more})) for more in ({}, {"y": y})]
    assert found[0] == found[1]
    assert compute(task.loss_and_metrics(outputs, {**x, "value": value})) == found[0]


@pytest.mark.parametrize("encoder", [RecurrentEncoder, TemporalConvNet, TransformerEncoder])
def test_a_forecaster_begins_with_the_last_value_and_sees_what_is_known(encoder):
    x = batch()
    model = Forecaster(encoder(num_layers=1), features=4, lags=(4,))
    inputs = x["past"], x["future"], x["static"]
    variables = model.init(jax.random.key(0), *inputs)
    assert not np.asarray(model.apply(variables, *inputs)).any()
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

    def last(past, future, static):
        return model.apply(variables, past, future, static)[:, -1].sum()

    for gradient in jax.grad(last, (0, 1, 2))(*map(jnp.array, inputs)):
        assert np.isfinite(gradient).all()
        assert np.asarray(gradient).any()
    if encoder is not TransformerEncoder:  # step 0 of the horizon sees no later covariate

        def first(future):
            return model.apply(variables, x["past"], future, x["static"])[:, 0].sum()

        assert not np.asarray(jax.grad(first)(jnp.array(x["future"])))[:, 1:].any()


def test_wrong_sizes_are_named():
    task, x = QuantileForecast(quantiles=LEVELS), batch()
    with pytest.raises(UserError, match=r"model\.lags holds 3, less than the horizon of 4"):
        Forecaster(lags=(3,)).init(jax.random.key(0), x["past"], x["future"], x["static"])
    with pytest.raises(UserError, match=r"set model\.features to 5 times"):
        task.to_prediction(jnp.zeros((6, 4, 7)), x)
    shape = jax.eval_shape(lambda: task.to_prediction(jnp.zeros((6, 4, 5)), {
        **x, "offset": x["offset"][:, :1], "scale": x["scale"][:, :1]
    }))  # fmt: skip
    with pytest.raises(UserError, match=r"set model\.features to 10"):
        task.validate_batch(jax.tree.map(np.asarray, x), shape, "split 'train'")
    for wrong in ((0.1, 0.9), (0.5, 0.1), (0.0, 0.5)):
        with pytest.raises(UserError, match=r"task\.quantiles are rising"):
            dataclasses.replace(task, quantiles=wrong)
