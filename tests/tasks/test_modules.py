"""Modules as Flax users write them: random streams, methods, inputs, dtypes, and errors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.optimizers import SGD, Adam
from jdl.parallel import Single
from jdl.step import init, update
from jdl.tasks import BinaryClassification, Classification, Regression, forward
from tests.runs import ARRAYS, make_experiment

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def fit(model, x=X, y=Y, **settings):
    return jdl.fit(model, x, y, **{"epochs": 1, "hooks": (), **settings})


class Streams(nn.Module):
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x, train=False):
        for name in self.names if train else ():
            x = x + jax.random.normal(self.make_rng(name), x.shape)
        return x


def test_random_streams_of_any_name_are_independent_and_functions_of_the_key():
    x, key = jnp.zeros((2000,)), jax.random.key(7)

    def draw(*names):
        return np.asarray(forward(Streams(names), {}, {}, x, train=True, key=key)[0])

    np.testing.assert_array_equal(draw("noise"), draw("noise"))
    a, b = draw("dropout"), draw("noise")
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    twice = draw("noise", "latent")
    assert twice.var() == pytest.approx(2, rel=0.15), "not the same numbers twice"
    with pytest.raises(UserError, match=r"Draws random numbers|draws random numbers in training"):
        forward(Streams(("noise",)), {}, {}, x, train=True)


class Methods(nn.Module):
    def setup(self):
        self.encoder, self.decoder = nn.Dense(2), nn.Dense(4)

    def __call__(self, x, train=False):
        return self.decoder(self.encode(x, training=train))

    def encode(self, x, training, scale=1.0):
        return self.encoder(x) * scale * (2 if training else 1)


def test_forward_calls_another_method_with_its_own_arguments():
    x = jnp.asarray(X)
    params = Methods().init(jax.random.key(0), x)["params"]
    plain, _ = forward(Methods(), params, {}, x, train=False, method="encode")
    double, _ = forward(
        Methods(), params, {}, x, train=True, key=jax.random.key(0), method="encode", scale=3.0
    )
    np.testing.assert_allclose(double, 6 * plain, rtol=1e-6)


class Two(nn.Module):
    @nn.compact
    def __call__(self, image, text, train=False):
        return nn.Dense(2)(image) - nn.Dense(2)(text)


class Unnamed(nn.Module):
    @nn.compact
    def __call__(self, first, second):
        return Two()(first, second)


@pytest.mark.parametrize("inputs", [("image", "text"), ("text", "image")])
@pytest.mark.parametrize("model", [Two(), Unnamed()])
def test_several_inputs_are_passed_by_name_or_in_order(model, inputs):
    arrays = {"image": X, "text": X[::-1].copy(), "label": Y}
    task = Classification(inputs=inputs)
    data = Arrays({"train": arrays}, test_fraction=0.0, validation_fraction=0.0)
    experiment = jdl.Experiment(
        model=model, task=task, data=data, steps=2, hooks=(), strategy=Single()
    )
    run = jdl.train(experiment)
    order = ["image", "text"] if isinstance(model, Two) else inputs
    expected = model.apply({"params": run.state.params}, *(arrays[name] for name in order))
    found = run.predict({name: arrays[name] for name in inputs})
    np.testing.assert_allclose(found, jax.nn.softmax(expected), atol=1e-6)
    with pytest.raises(UserError, match=f"several inputs: pass a dict with {inputs[0]}"):
        run.predict(X)


@pytest.mark.parametrize("model", [Two(), Unnamed()])
def test_fit_takes_a_dict_of_several_inputs(model):
    x = {"text": X, "image": X[::-1]}
    run = fit(model, x, Y, validation_data=({k: v[:9] for k, v in x.items()}, Y[:9]))
    assert run.experiment.task.inputs == ("text", "image")
    order = ["image", "text"] if isinstance(model, Two) else ["text", "image"]
    expected = model.apply({"params": run.state.params}, *(x[name] for name in order))
    np.testing.assert_allclose(run.predict(x), jax.nn.softmax(expected), atol=1e-6)
    for wrong, message in (
        ({"text": X, "image": X[:5]}, r"x\['image'\] has 5 examples, y 32"),
        ({"text": X, "label": X}, "input 'label', which is the name of the targets"),
        ({}, "x is a dict without inputs"),
    ):
        with pytest.raises(UserError, match=message):
            fit(model, wrong)
    with pytest.raises(UserError, match=r"validation x has an array, where the inputs are"):
        fit(model, x, validation_data=(X, Y))
    with pytest.raises(UserError, match=r"the inputs \('a', 'b'\): pass x as a dict"):
        fit(model, X, task=Classification(inputs=("a", "b")))


def test_a_missing_one_of_several_inputs_is_named():
    data = Arrays({"train": {"image": X, "label": Y}}, test_fraction=0.0, validation_fraction=0.0)
    task = Classification(inputs=("image", "text"))
    with pytest.raises(UserError, match=r"no array 'text' .it has 'image', 'label'."):
        jdl.train(jdl.Experiment(model=Two(), task=task, data=data, steps=1, hooks=()))


class Complex(nn.Module):
    """A complex factor on pairs of numbers."""

    @nn.compact
    def __call__(self, x):
        z = self.param("w", lambda key: jnp.array(0.5 + 0.5j)) * (x[:, 0] + 1j * x[:, 1])
        return jnp.stack([z.real, z.imag], 1)


@pytest.mark.parametrize("optimizer", [SGD(0.2), SGD(0.1, momentum=0.5), Adam(0.1)])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_complex_parameters_descend_to_the_least_squares(optimizer, num_microbatches):
    x = X[:, :2]
    z = (1 - 2j) * (x[:, 0] + 1j * x[:, 1])
    y = np.stack([z.real, z.imag], 1)
    settings = {"epochs": 80, "optimizer": optimizer, "num_microbatches": num_microbatches}
    run = fit(Complex(), x, y, task=Regression(), **settings)
    assert abs(complex(run.state.params["w"]) - (1 - 2j)) < 0.1
    with pytest.raises(UserError, match=r"optimizer cannot update the parameters: .*omplex"):
        fit(Complex(), x, y, task=Regression(), optimizer=SGD(0.1, clip_value=1.0))


class Narrow(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, param_dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, param_dtype=self.dtype)(x)
        return nn.Dense(2, param_dtype=self.dtype)(x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_16_bits_train_with_an_optimizer_of_32(dtype):
    run = fit(Narrow(dtype), optimizer=Adam(1e-2), epochs=30)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.state.params)} == {np.dtype(dtype)}
    moments = [x for x in jax.tree.leaves(run.state.opt_state) if x.ndim]
    assert {leaf.dtype for leaf in moments} == {np.dtype("float32")}
    assert run.evaluate("train")["loss"] < 0.5


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) + self.param("steps", lambda key: jnp.ones((), jnp.int32))


def test_a_parameter_without_a_gradient_is_named():
    with pytest.raises(UserError, match="parameter steps is of dtype int32 and has no gradient"):
        fit(Whole())


class Growing(nn.Module):
    """Creates or changes a variable in training only."""

    how: str

    @nn.compact
    def __call__(self, x, train=False):
        if train and self.how == "created":
            self.variable("mine", "late", jnp.zeros, ()).value += 1
        elif self.how == "changed":
            seen = self.variable("mine", "seen", jnp.zeros, ())
            if train:
                seen.value = x.mean(0)
        return nn.Dense(2)(x)


def test_variables_that_appear_or_change_in_training_are_named():
    with pytest.raises(UserError, match=r"mine.seen float32\[4\], which is float32\[\] at first"):
        fit(Growing("changed"))
    with pytest.raises(UserError, match=r"Growing cannot take .* in training|updates variables"):
        fit(Growing("created"))


class Broken(nn.Module):
    """Fails by an error that names an array of nobody."""

    @nn.compact
    def __call__(self, x):
        return {"logits": nn.Dense(2)(x)}["logit"]


class Several(nn.Module):
    """Returns its logits in a tuple or a dict."""

    named: bool

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(3)(x)
        return {"logits": logits} if self.named else (logits, x)


class Clumsy(Classification):
    def loss_and_metrics(self, outputs, batch):
        return {**super().loss_and_metrics(outputs, batch), "x": batch["weights"]}


class Failing:
    """A device transform that fails, or drops the mask."""

    def __init__(self, error=None):
        self.error = error

    def __call__(self, batch, keys):
        if self.error:
            raise self.error
        return {"image": batch["image"], "label": batch["label"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Broken()}, r"the model Broken .*: KeyError 'logit' \(test_modules.py, line"),
        ({"model": Several(named=False)}, "returns a tuple, where Scored needs one array"),
        ({"model": Several(named=True)}, "returns a dict, where Scored needs one array"),
        ({"task": Clumsy()}, r"no array 'weights' \(it has 'image', 'label'\).*test_modules.py"),
        ({"transform": Failing(ValueError("bad"))}, r"device_transforms.0 \(Failing\) .*: bad \("),
        ({"transform": Failing(KeyError("mine"))}, r"device_transforms.0 .* KeyError 'mine'"),
        ({"transform": Failing()}, r"device_transforms.0 \(Failing\) drops the array 'mask'"),
        ({"task": BinaryClassification()}, r"output has shape \(8, 3\), .* one logit"),
    ],
)
def test_the_part_that_fails_is_named(change, message):
    changes = dict(change)
    if transform := changes.pop("transform", None):
        changes["data"] = Arrays(ARRAYS, device_transforms=(transform,))
    with pytest.raises(UserError, match=message):
        jdl.train(make_experiment(**changes))


def test_the_observed_step_has_no_further_operations():
    """Observing, casting and conjugating leave no trace in an ordinary model's program."""
    program = make_experiment().program(6)
    batch = {k: jnp.asarray(v[:8]) for k, v in ARRAYS["train"].items()}
    batch["mask"] = jnp.ones(8, bool)
    state = init(program, jax.random.key(0), batch)
    text = str(jax.make_jaxpr(lambda s, b: update(program, s, b))(state, batch))
    assert "conj" not in text
    assert "bf16" not in text
    assert text.count("random_fold_in") == 2, "of the step, and of each row"
