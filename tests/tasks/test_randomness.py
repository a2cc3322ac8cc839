"""What a task draws is a function of the run's key, the step and the row alone."""

import dataclasses
import functools
from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Arrays, RandomCrop
from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.step import Program
from jdl.tasks import Task, forward, row_keys, with_row_keys

ROWS, SIZE = 8, 6
STRATEGIES = [DataParallel(2), FullySharded(2, min_elements=1), Pmap(2)]


@dataclass(frozen=True, kw_only=True)
class Denoising(Task):
    """Predicts the noise that was added to an image; the noise is that of each row's key."""

    targets: str = "image"

    def noise(self, batch):
        def one(key):
            return jax.random.normal(key, (SIZE, SIZE, 1))

        return jax.vmap(one)(row_keys(batch))

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        noise = self.noise(batch)
        noisy = batch["image"] + noise
        found, collections = forward(model, params, state.collections, noisy, train=train, key=key)
        error = ((found - noise.reshape(len(noise), -1)) ** 2).mean(1)
        return {"loss": Mean.of(error, batch["mask"])}, collections

    def predict(self, model, state, batch):
        return forward(model, state.params, {}, self.noise(batch), train=False)[0]


DENOISER = Program(
    MLP((8,), SIZE * SIZE, nn.tanh),
    Denoising(),
    SGD(0.1).build(100),
    (RandomCrop(padding=1),),
)


def step_input(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(ROWS, SIZE, SIZE, 1))
    return {"image": np.float32(image), "mask": np.arange(ROWS) < ROWS - seed % 4}


@functools.cache
def losses(strategy, parts=1, count=5):
    """Losses and parameters of a few steps."""
    program = dataclasses.replace(DENOISER, num_microbatches=parts)
    steps = strategy.compile(program, {}, step_input(0))
    state, found = steps.init(jax.random.key(3)), []
    for seed in range(count):
        state, packed = steps.update(state, steps.put(step_input(seed)))
        found.append(packed.unpack()[0]["loss"].compute())
    return found, jax.tree.map(np.asarray, steps.gather(state).params)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("strategy", [Single(), *STRATEGIES], ids=lambda s: type(s).__name__)
def test_a_loss_that_draws_noise_is_equal_under_every_strategy_and_accumulation(strategy, parts):
    found, params = losses(strategy, parts)
    expected, last = losses(Single())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(params, last, atol=1e-5)
    assert np.std(expected) > 1e-3


def test_keys_differ_between_rows_streams_steps_and_from_those_of_augmentation():
    batch = {"mask": np.ones(4, bool)}
    keyed = with_row_keys(batch, jax.random.key(0))
    other = with_row_keys(batch, jax.random.key(1))
    drawn = [row_keys(keyed), row_keys(keyed, 1), row_keys(other), keyed["row_keys"]]
    words = np.concatenate([jax.random.key_data(keys) for keys in drawn])
    assert len(np.unique(words, axis=0)) == len(words)
    chex.assert_trees_all_equal(jax.random.key_data(row_keys(keyed)), words[:4])


SINGLE = Single()


def fit(size, strategy=SINGLE, data=None):
    rng = np.random.default_rng(0)
    images = {"image": np.float32(rng.normal(size=(11, SIZE, SIZE, 1)))}
    return jdl.train(
        Experiment(
            model=DENOISER.model,
            task=Denoising(),
            data=data or Arrays({"train": images, "test": images}, validation_fraction=0),
            strategy=strategy,
            batch_size=size,
            steps=1,
            optimizer=SGD(0.0),
            hooks=(),
        )
    )


def test_one_key_gives_one_score_and_prediction_in_any_batch_size_and_strategy():
    runs = [fit(4), fit(6), fit(4, Pmap(2)), fit(8, DataParallel(2))]
    x = np.zeros((11, SIZE, SIZE, 1), np.float32)
    for key in (None, jax.random.key(0), jax.random.key(7)):
        scores = [run.evaluate("test", key=key)["loss"] for run in runs]
        np.testing.assert_allclose(scores, scores[0], rtol=1e-6)
        found = [run.predict(x, key=key) for run in runs]
        for each in found:
            np.testing.assert_allclose(each, found[0], rtol=1e-4, atol=1e-5)
        assert np.ptp(found[0], axis=0).max() > 0.1, "rows of equal inputs differ by their keys"
    run = runs[0]
    assert run.evaluate("test") == run.evaluate("test", key=jax.random.key(0))
    scores = {run.evaluate("test", key=jax.random.key(seed))["loss"] for seed in range(3)}
    assert len(scores) == 3


def test_what_is_no_key_and_a_taken_name_are_refused():
    run = fit(4)
    with pytest.raises(UserError, match=r"key is Array.*: pass one of jax\.random\.key\(seed\)"):
        run.evaluate("test", key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(UserError, match="no keys: add them with"):
        row_keys({"mask": np.ones(2, bool)})
    arrays = {"image": np.zeros((8, SIZE, SIZE, 1)), "row_keys": np.zeros(8)}
    with pytest.raises(UserError, match="the data has an array 'row_keys'"):
        fit(4, data=Arrays({"train": arrays}, test_fraction=0, validation_fraction=0))


class Sampler(nn.Module):
    """Draws from a stream of its own, as the latent of a variational autoencoder."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))
        if self.has_rng("latent"):
            x = x + jax.random.normal(self.make_rng("latent"), x.shape)
        return x

    def twice(self, x):
        return 2 * self(x)


def test_forward_takes_streams_by_name_for_the_batch_or_for_each_row():
    model, x = Sampler(), jnp.ones((4, 2))
    params = model.init(jax.random.key(0), x)["params"]
    key = jax.random.key(5)
    apply = functools.partial(forward, model, params, {})
    plain = apply(x, train=False)[0]
    one = apply(x, train=False, rngs={"latent": key})[0]
    expected = model.apply({"params": params}, x, rngs={"latent": key})
    np.testing.assert_array_equal(one, expected)
    assert (one != plain).all()

    keys = row_keys(with_row_keys({"mask": np.ones(4, bool)}, key))
    rows = apply(x, train=False, rngs={"latent": keys})[0]
    each = [apply(x[i : i + 1], train=False, rngs={"latent": keys[i]})[0] for i in range(4)]
    np.testing.assert_allclose(rows, np.concatenate(each), rtol=1e-6)
    half = apply(x[2:], train=False, rngs={"latent": keys[2:]})[0]
    np.testing.assert_allclose(rows[2:], half, rtol=1e-6)
    twice = apply(x, train=False, rngs={"latent": keys}, method="twice")[0]
    np.testing.assert_allclose(twice, 2 * rows, rtol=1e-6)

    trained = apply(x, train=True, key=key, rngs={"latent": keys})[0]
    again = apply(x[1:3], train=True, key=jax.random.key(9), rngs={"latent": keys[1:3]})[0]
    np.testing.assert_allclose(trained[1:3], again, rtol=1e-6)
    assert (np.asarray(trained) != np.asarray(rows)).any(), "dropout is active"
