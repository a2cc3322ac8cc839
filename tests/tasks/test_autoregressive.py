"""Sample paths against the closed form of a Gaussian autoregression, and DeepAR step by step."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jdl
from jdl.cli.main import main
from jdl.data import Panel
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import DeepAR
from jdl.optimizers import Adam
from jdl.state import TrainState
from jdl.tasks import AutoregressiveForecast, with_row_keys

RNG = np.random.default_rng(0)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FACTOR, DEVIATION = np.array([0.9, -0.5]), np.array([0.3, 1.0])


class Autoregression(nn.Module):
    """y_t = FACTOR y_(t-1) + DEVIATION times a unit of noise, of two targets."""

    def __call__(self, past, future, static, y, observed):
        del static, observed
        previous = jnp.concatenate([past[:, -1:, :2], y[:, :-1]], 1)
        return self.decode((), previous, future)[0]

    def encode(self, past, future, static):
        del static
        return (), past[:, -1:, :4], future

    def decode(self, states, before, known):
        del known
        location = FACTOR * before[..., :2]
        spread = jnp.broadcast_to(np.log(np.expm1(DEVIATION - 1e-3)), location.shape)
        return jnp.stack([location, spread], -1).reshape(*location.shape[:-1], 4), states


def batch(rows=3, length=5, horizon=4):
    value = RNG.normal(size=(rows, horizon, 2)).astype(np.float32)
    offset, scale = RNG.normal(5, 1, (rows, 2)), RNG.uniform(0.5, 2, (rows, 2))
    past = RNG.normal(size=(rows, length, 6)).astype(np.float32)
    found = {
        "past": past,
        "future": RNG.normal(size=(rows, horizon, 1)).astype(np.float32),
        "static": RNG.normal(size=(rows, 3)).astype(np.float32),
        "value": offset[:, None] + scale[:, None] * value, "y": value,
        "offset": offset, "scale": scale, "naive_error": np.ones((rows, 2)),
        "observed": np.ones(value.shape, bool), "mask": np.ones(rows, bool),
    }  # fmt: skip
    found = jax.tree.map(lambda x: jnp.array(x, bool if x.dtype == bool else jnp.float32), found)
    return with_row_keys(found, jax.random.key(3))


def state(params=None):
    return TrainState(
        step=jnp.int32(0), key=jax.random.key(0), params=params or {}, collections={}, opt_state=()
    )


def test_paths_have_the_distribution_of_the_autoregression():
    given, samples = batch(), 20_000
    task = AutoregressiveForecast(quantiles=LEVELS, num_samples=samples)
    paths = jax.jit(task.sample_paths, static_argnums=0)(Autoregression(), state(), given)
    assert paths.shape == (3, samples, 4, 2)
    x = {name: np.asarray(given[name]) for name in ("past", "offset", "scale")}
    steps = 1 + np.arange(4)[:, None]
    mean = FACTOR**steps * x["past"][:, -1:, :2]  # (rows, steps, targets)
    variance = DEVIATION**2 * (1 - FACTOR ** (2 * steps)) / (1 - FACTOR**2)
    scaled = (np.asarray(paths) - x["offset"][:, None, None]) / x["scale"][:, None, None]
    error = np.sqrt(variance / samples)
    assert (abs(scaled.mean(1) - mean) < 5 * error).all()
    np.testing.assert_allclose(scaled.var(1), np.broadcast_to(variance, mean.shape), rtol=0.06)
    # What quantiles of each step do not tell: steps h and k correlate by FACTOR^|h - k|.
    for target in range(2):
        covariance = np.cov(scaled[0, :, :, target].T)
        gap = abs(steps - steps.T)
        least = np.minimum.outer(variance[:, target], variance[:, target])
        np.testing.assert_allclose(covariance, FACTOR[target] ** gap * least, atol=0.05)
    assert abs(np.corrcoef(scaled[0, :, 3].T)[0, 1]) < 5 / np.sqrt(samples)
    quantiles = jax.jit(task.predict, static_argnums=0)(Autoregression(), state(), given)
    expected = scipy.stats.norm.ppf(LEVELS, mean[..., None], np.sqrt(variance)[..., None])
    own = x["offset"][:, None, :, None] + x["scale"][:, None, :, None] * expected
    tolerance = (x["scale"][:, None] * 8 * error)[..., None]  # of the outer quantiles some 2 errors
    assert (abs(quantiles - own) < tolerance).all()


def test_metrics_are_of_the_quantiles_of_paths_and_the_loss_of_known_values():
    x = batch()
    task = AutoregressiveForecast(quantiles=LEVELS, num_samples=50, interval_scale=1.5)

    @jax.jit
    def evaluate(x):
        model, empty = Autoregression(), state()
        scores, _ = task.batch_metrics(model, {}, empty, x, train=False)
        return scores, task.predict(model, empty, x), task.sample_paths(model, empty, x)

    found, quantiles, paths = jax.device_get(evaluate(x))
    found = compute(found)
    middle = np.median(paths, 1)[..., None]
    own = np.moveaxis(np.quantile(paths, LEVELS, axis=1), 0, -1)
    np.testing.assert_allclose(quantiles, middle + 1.5 * (own - middle), rtol=1e-4, atol=1e-4)
    x = jax.tree.map(np.asarray, {k: v for k, v in x.items() if k != "row_keys"})
    np.testing.assert_allclose(found["mae"], abs(middle[..., 0] - x["value"]).mean(), rtol=1e-4)
    inside = (quantiles[..., 0] <= x["value"]) & (x["value"] <= quantiles[..., -1])
    assert found["coverage"] == pytest.approx(inside.mean())
    before = np.concatenate([x["past"][:, -1:, :2], x["y"][:, :-1]], 1)
    nll = -scipy.stats.norm.logpdf(x["y"], FACTOR * before, DEVIATION)
    assert found["loss"] == pytest.approx(nll.mean(), rel=1e-4)
    trained, _ = task.batch_metrics(Autoregression(), {}, state(), batch(), train=True)
    assert list(trained) == ["loss"]


def test_paths_depend_on_the_key_of_their_row_alone():
    x, task = batch(), AutoregressiveForecast(quantiles=LEVELS, num_samples=4)
    draw = functools.partial(jax.jit(task.sample_paths, static_argnums=0), Autoregression())
    found = draw(state(), x)
    backward = {name: array[::-1] for name, array in x.items()}
    np.testing.assert_allclose(draw(state(), backward)[::-1], found, rtol=1e-6)
    keys = jax.random.split(jax.random.key(4), 3)
    other = draw(state(), {**x, "row_keys": keys})
    assert (np.asarray(other) != np.asarray(found)).mean() > 0.9


def test_deepar_step_by_step_is_deepar_on_known_values():
    x = batch(length=6)
    model = DeepAR(hidden_size=8, num_layers=2, features=4, lags=(4, 5))
    inputs = tuple(x[name] for name in ("past", "future", "static"))
    known = x["y"], x["observed"]
    params = jax.jit(model.init)(jax.random.key(0), *inputs, *known)["params"]
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)

    @jax.jit
    def by_steps(params):
        states, before, rest = model.apply({"params": params}, *inputs, method="encode")

        def step(carry, now):
            states, before = carry
            rest, value = now
            found, states = model.apply(
                {"params": params}, states, before, rest[:, None], method="decode"
            )
            return (states, jnp.concatenate([value, jnp.ones_like(value)], 1)[:, None]), found[:, 0]

        steps = jnp.swapaxes(rest, 0, 1), jnp.swapaxes(x["y"], 0, 1)
        return jnp.swapaxes(jax.lax.scan(step, (states, before), steps)[1], 0, 1)

    @jax.jit
    def at_once(params):
        def last(y, past):
            found = model.apply({"params": params}, past, *inputs[1:], y, known[1])
            return found[:, 2].sum(), found

        return jax.grad(last, (0, 1), has_aux=True)(known[0], inputs[0])

    assert not np.asarray(at_once(params)[1]).any()
    (y, past), whole = at_once(other)
    np.testing.assert_allclose(by_steps(other), whole, atol=1e-6)
    assert np.asarray(y)[:, :2].all()
    assert not np.asarray(y)[:, 2:].any()
    assert np.asarray(past)[..., :4].all()
    with pytest.raises(UserError, match=r"2 targets have two parameters each: set it to 4"):
        model.clone(features=2).init(jax.random.key(0), *inputs, *known)
    with pytest.raises(UserError, match=r"num_samples must be at least 1"):
        AutoregressiveForecast(num_samples=0)


def test_intervals_and_paths_of_a_run(tmp_path, capsys):
    days = np.arange(np.datetime64("2024-01-01"), np.datetime64("2024-04-01"))
    lines = [f"{day},{index % 7},{index % 2}" for index, day in enumerate(days)]
    path = tmp_path / "days.csv"
    path.write_text("\n".join(["day,sold,seen", *lines]) + "\n")
    data = Panel(
        str(path), time="day", targets=("sold",), past=("seen",), length=14, horizon=3, season=7
    )
    experiment = jdl.Experiment(
        model=DeepAR(hidden_size=8, features=2),
        task=AutoregressiveForecast(quantiles=(0.1, 0.5, 0.9), num_samples=20, season=7),
        data=data, optimizer=Adam(1e-2), hooks=(), steps=3, batch_size=16,
        final_train_evaluation=False,
    )  # fmt: skip
    run = jdl.train(experiment, workdir=tmp_path / "run")
    scores = run.evaluate("test")
    assert scores == run.evaluate("test", key=jax.random.key(0))
    other = run.evaluate("test", key=jax.random.key(1))
    assert scores["mae"] != other["mae"]
    assert scores["loss"] == other["loss"]
    main(["predict", str(tmp_path / "run"), str(path)])
    levels = json.loads(capsys.readouterr().out)["prediction"]["sold"]
    assert list(levels) == ["0.1", "0.5", "0.9"]
    assert (np.diff(list(levels.values()), axis=0) > 0).all()
    main(["sample", str(tmp_path / "run"), "--count", "2", "--out", str(tmp_path / "paths")])
    paths = [json.loads(file.read_text()) for file in sorted((tmp_path / "paths").iterdir())]
    assert [len(each["sold"]) for each in paths] == [3, 3]
    assert paths[0] != paths[1]
