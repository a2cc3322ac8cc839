"""Values that modules sow, and perturbations: no state, and losses where the task names them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.inference.export import export_prediction
from jdl.parallel import DataParallel, Pmap, Single
from jdl.step import init
from jdl.tasks import Classification
from tests.runs import ARRAYS, make_experiment

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def fit(model, x=X, y=Y, **settings):
    return jdl.fit(model, x, y, **{"epochs": 1, "hooks": (), **settings})


class Sown(nn.Module):
    """Sows into a collection of any name, with a variable of its own beside."""

    collection: str = "losses"
    summed: bool = False
    nested: bool = False

    @nn.compact
    def __call__(self, x):
        seen = self.variable("mine", "seen", jnp.zeros, ())
        if self.is_mutable_collection("mine"):
            seen.value = x.sum()
        return Sower(self.collection, self.summed)(nn.Dense(4)(x))


class Sower(nn.Module):
    collection: str
    summed: bool

    @nn.compact
    def __call__(self, x):
        how: Any = {"reduce_fn": jnp.add, "init_fn": lambda: 0.0} if self.summed else {}
        self.sow(self.collection, "term", jnp.square(x).mean(), **how)
        self.sow(self.collection, "term", jnp.abs(x).mean(), **how)
        return nn.Dense(3)(x)


@pytest.mark.parametrize("collection", ["losses", "intermediates", "mine", "batch_stats"])
@pytest.mark.parametrize("summed", [False, True])
def test_sown_values_are_dropped_alike_everywhere(collection, summed):
    """The state has the model's own variables only, in every branch."""
    model = Sown(collection, summed)
    run = jdl.train(make_experiment(model=model, steps=3, num_microbatches=2))
    assert jax.tree.structure(run.state.collections) == jax.tree.structure({"mine": {"seen": 0}})
    params = {"params": run.state.params, **run.state.collections}
    expected = jax.nn.softmax(model.apply(params, ARRAYS["test"]["image"]))
    np.testing.assert_allclose(run.predict(ARRAYS["test"]["image"]), expected, atol=1e-6)


@pytest.mark.parametrize("strategy", [Single(), DataParallel(2), Pmap(2)])
def test_sown_losses_are_added_where_the_task_says_so(strategy):
    task, x = Classification(sown_losses=("losses",)), ARRAYS["train"]["image"]
    changes = {"model": Sown(), "task": task, "strategy": strategy, "steps": 2}
    if not isinstance(strategy, Pmap):
        changes["num_microbatches"] = 2
    run = jdl.train(make_experiment(**changes))
    assert set(run.state.collections) == {"mine"}
    # In evaluation: the cross-entropy and the terms of the batches, weighted by their rows.
    hidden = nn.Dense(4).apply({"params": run.params["Dense_0"]}, x)
    scores = run.evaluate("train")
    terms = jnp.square(hidden).mean() + jnp.abs(hidden).mean()
    assert scores["loss"] - scores["nll"] == pytest.approx(float(terms), rel=1e-5)
    exported = export_prediction(run)
    np.testing.assert_allclose(exported.call(image=x[:8]), run.predict(x[:8]), atol=1e-6)


def test_sown_losses_change_the_gradient_by_theirs():
    program = make_experiment(model=Sown(), task=Classification(sown_losses=("losses",)))
    program = program.program(10)
    batch = {k: jnp.asarray(v[:8]) for k, v in ARRAYS["train"].items()}
    batch["mask"] = jnp.arange(8) < 6
    state = init(program, jax.random.key(0), batch)
    plain = program.task.__class__().gradient(program.model, state, batch, jax.random.key(1))
    gradients, weight, _, metrics = program.task.gradient(
        program.model, state, batch, jax.random.key(1)
    )

    def terms(params):
        hidden = nn.Dense(4).apply({"params": params["Dense_0"]}, batch["image"])
        return 6 * (jnp.square(hidden).mean() + jnp.abs(hidden).mean())

    expected = jax.tree.map(jnp.add, plain[0], jax.grad(terms)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)
    assert weight == 6
    added = metrics["loss"].total - plain[3]["loss"].total
    np.testing.assert_allclose(added, terms(state.params), rtol=1e-5)


class PerExample(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("losses", "each", jnp.square(x).mean(-1))
        return nn.Dense(3)(x)


def test_sown_losses_that_are_none_or_one_per_example_are_refused():
    task = Classification(sown_losses=("losses",))
    with pytest.raises(UserError, match="names 'losses', into which the model sows nothing"):
        fit(nn.Dense(2), task=task)
    with pytest.raises(UserError, match=r"array of shape \(32,\) into 'losses': sow one number"):
        fit(PerExample(), task=task)


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.perturb("hidden", nn.Dense(4)(x)))


def test_perturbations_of_the_shape_of_a_batch_are_no_state():
    run = jdl.train(make_experiment(model=Perturbed(), steps=2, num_microbatches=2))
    assert run.state.collections == {}
