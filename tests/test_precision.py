"""bf16 computes in bfloat16 and keeps parameters, losses and statistics in float32."""

import functools

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import step as step_lib
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.models import CNN, MLP
from jdl.optimizers import Adam
from jdl.step import Program
from jdl.tasks import Classification, Regression

NORM = CNN(channels=(4,), dense=(8,), num_classes=3, batch_norm=True, dropout_rate=0.2)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 16, np.int32)
    image = rng.normal(size=(16, 4, 4, 1)) + label[:, None, None, None]
    return {"image": np.float32(image), "label": label, "mask": np.ones(16, bool)}


def program(model, precision, task=None):
    data = Arrays({"train": {"image": np.zeros((9, 4, 4, 1)), "label": np.zeros(9, np.int32)}})
    experiment = Experiment(model=model, data=data, steps=1, precision=precision)
    return Program(experiment.compute_model(), task or Classification(), Adam(0.02).build(100))


def equations(jaxpr):
    """All equations of a jaxpr, those of the functions that it calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def inputs(function, *args):
    """The floating-point dtypes that each primitive is given, by its name."""
    found = {}
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        for variable in equation.invars:
            dtype = variable.aval.dtype
            if jnp.issubdtype(dtype, jnp.floating):
                found.setdefault(equation.primitive.name, set()).add(dtype.name)
    return found


def shapes(compute):
    """A state of shapes and dtypes only."""
    init = functools.partial(step_lib.init, compute)
    return jax.eval_shape(init, jax.random.key(0), batch())


def floats(tree):
    """The dtypes of a tree's floating-point leaves."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return {dtype.name for dtype in leaves if jnp.issubdtype(dtype, jnp.floating)}


@pytest.mark.parametrize(
    ("model", "products"),
    [(NORM, {"dot_general"}), (MLP((8,), 3), {"dot_general"})],  # on CPUs convolutions are products
)
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_products_are_computed_in_the_chosen_precision(model, products, precision, dtype):
    """Forward and backward: every factor of every product in the whole update."""
    compute = program(model, precision)
    given = inputs(functools.partial(step_lib.update, compute), shapes(compute), batch())
    assert {name: given[name] for name in products} == {name: {dtype} for name in products}


def test_loss_softmax_and_statistics_are_computed_in_float32():
    compute = program(NORM, "bf16")
    state, key = shapes(compute), jax.random.key(0)

    def loss(state, batch):
        return compute.task.loss(compute.model, state.params, state, batch, key)

    given = inputs(loss, state, batch())
    assert "bfloat16" in given["max"], "activations are in bfloat16"
    # exp and log are the softmax, rsqrt and square the norm, the sums are of both.
    for name in ("exp", "log", "rsqrt", "square", "reduce_max", "reduce_sum"):
        assert given[name] == {"float32"}, name
    predict = functools.partial(step_lib.predict, compute)
    assert inputs(predict, state, batch())["exp"] == {"float32"}


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_what_bf16_keeps_and_gives_is_float32(task):
    compute = program(NORM, "bf16", task)
    examples = batch()
    if isinstance(task, Regression):
        examples["label"] = np.zeros((16, 3), np.float32)
    state = shapes(compute)
    after, metrics = jax.eval_shape(functools.partial(step_lib.update, compute), state, examples)
    gradient = functools.partial(task.gradient, compute.model)
    gradients = jax.eval_shape(gradient, state, examples, jax.random.key(0))[0]
    predictions = jax.eval_shape(functools.partial(step_lib.predict, compute), state, examples)
    scores = jax.eval_shape(functools.partial(step_lib.evaluate, compute), state, examples)
    assert state.opt_state
    assert state.collections
    for tree in (state, after, metrics, gradients, predictions, scores):
        assert floats(tree) == {"float32"}


def test_bf16_learns_what_fp32_learns():
    losses = {}
    wide = program(MLP((8,), 3), "fp32")
    start = jax.jit(functools.partial(step_lib.init, wide))(jax.random.key(0), batch())
    for precision in ("fp32", "bf16"):
        compute, state = program(MLP((8,), 3), precision), start
        update = jax.jit(functools.partial(step_lib.update, compute))
        losses[precision] = []
        for seed in range(60):
            state, metrics = update(state, batch(seed))
            losses[precision].append(float(metrics["loss"].total / 16))
    assert losses["fp32"] != losses["bf16"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], atol=0.03)
    assert np.mean(losses["bf16"][-5:]) < 0.3 * losses["bf16"][0]


class Bare(nn.Module):
    """A model without a field `dtype`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_a_model_without_dtype_is_refused_in_bf16_only():
    with pytest.raises(UserError, match="field dtype, which Bare does not have"):
        program(Bare(), "bf16")
    assert program(Bare(), "fp32").model == Bare()
