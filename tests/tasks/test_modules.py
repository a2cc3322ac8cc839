"""Modules as Flax users write them: modes, sown values, random streams, dtypes, and errors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.inference.export import export_prediction
from jdl.optimizers import SGD, Adam
from jdl.parallel import DataParallel, Pmap, Single
from jdl.step import init, update
from jdl.tasks import BinaryClassification, Classification, Regression, forward
from tests.runs import ARRAYS, make_experiment

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def fit(model, x=X, y=Y, **settings):
    return jdl.fit(model, x, y, **{"epochs": 1, "hooks": (), **settings})


class Norm(nn.Module):
    """Both kinds of layers, as active as `train` says."""

    nested: bool = False

    @nn.compact
    def apply_layers(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class Train(Norm):
    def __call__(self, x, train=False):
        return self.apply_layers(x, train)


class Training(Norm):
    def __call__(self, x, training: bool = False):
        return self.apply_layers(x, training)


class IsTraining(Norm):
    def __call__(self, x, *, is_training):
        return self.apply_layers(x, is_training)


class Deterministic(Norm):
    def __call__(self, x, deterministic=True):
        return self.apply_layers(x, not deterministic)


class RunningAverage(Norm):
    def __call__(self, x, use_running_average=True):
        return self.apply_layers(x, not use_running_average)


class Both(Norm):
    def __call__(self, x, train: bool, deterministic: bool):
        assert train is not deterministic
        return self.apply_layers(x, train)


@pytest.mark.parametrize("kind", [Train, Training, IsTraining, Deterministic, RunningAverage, Both])
def test_every_usual_name_of_the_mode_is_understood(kind):
    x, key = jnp.asarray(X), jax.random.key(0)
    collections = dict(kind().init(key, x, **mode(kind, False)))
    params = collections.pop("params")
    output, changed = forward(kind(), params, collections, x, train=True, key=key)
    expected, state = Train().apply(
        {"params": params, **collections}, x, True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(*map(mean, (changed, state)))
    assert np.abs(mean(changed)).min() > 0
    output, same = forward(kind(), params, collections, x, train=False)
    np.testing.assert_array_equal(output, Train().apply({"params": params, **collections}, x))
    assert same == collections


def mode(kind, train):
    names = {IsTraining: "is_training", Both: "train"}
    given = {names[kind]: train} if kind in names else {}
    return {**given, **({"deterministic": not train} if kind is Both else {})}


def mean(collections):
    (stats,) = collections["batch_stats"].values()
    return stats["mean"]


class Inner(nn.Module):
    """A layer that nobody tells the mode."""

    kind: str = "dropout"

    @nn.compact
    def __call__(self, x, train=False):
        if self.kind == "dropout":
            return nn.Dropout(0.3)(x, deterministic=not train)
        if self.kind == "jdl":
            return jdl_dropout(x, train)
        if self.kind == "attention":
            return nn.MultiHeadDotProductAttention(
                2, dropout_rate=0.1, deterministic=not train, qkv_features=4
            )(x[:, None])[:, 0]
        return nn.BatchNorm(use_running_average=not train)(x)


def jdl_dropout(x, train):
    from jdl.layers import Dropout

    return Dropout(0.3, deterministic=not train)(x)


class Outer(nn.Module):
    kind: str = "dropout"
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        inner = nn.remat(Inner) if self.remat else Inner
        return nn.Dense(2)(inner(self.kind, name="inner")(nn.Dense(4)(x)))


class Sequence(nn.Module):
    """Inactive layers inside of Flax's own containers."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = nn.BatchNorm(use_running_average=True)
        return nn.Sequential([nn.Dense(4), norm, nn.Dense(2)])(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Outer(), r"inner/Dropout_0 \(Dropout\) of Outer drops nothing in training"),
        (Outer("jdl"), r"inner/Dropout_0 \(Dropout\) of Outer drops nothing"),
        (Outer("norm"), r"inner/BatchNorm_0 \(BatchNorm\) of Outer never updates its statistics"),
        (Outer("attention"), r"inner/MultiHead\w+_0 .* drops nothing"),
        (Outer(remat=True), r"inner/Dropout_0 \(Dropout\) of Outer drops nothing"),
        (Sequence(), r"BatchNorm_0 \(BatchNorm\) of Sequence never updates"),
    ],
)
def test_a_layer_that_training_leaves_inactive_is_named(model, message):
    with pytest.raises(UserError, match=message):
        fit(model)
    with pytest.raises(UserError, match=r"task.inactive_layers"):
        fit(model, task=Classification(inactive_layers=("other",)))


def test_inactive_layers_may_be_meant_and_a_rate_of_0_is_none():
    class Zero(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Dropout(0.0, deterministic=True)(x))

    fit(Zero())
    run = fit(Outer("norm"), task=Classification(inactive_layers=("inner/*",)))
    assert mean(run.state.collections["batch_stats"] and nested(run)).tolist() == [0] * 4


def nested(run):
    return {"batch_stats": run.state.collections["batch_stats"]["inner"]}


class Twice(nn.Module):
    """Calls a layer in both modes, as a teacher and its student do."""

    @nn.compact
    def __call__(self, x, train=False):
        drop, dense = nn.Dropout(0.5), nn.Dense(2)
        return dense(drop(x, deterministic=not train)) + dense(drop(x, deterministic=True))


def test_a_layer_that_is_active_in_one_of_its_calls_is_active():
    fit(Twice())


class Always(nn.Module):
    """Layers that know no evaluation."""

    norm: bool

    @nn.compact
    def __call__(self, x):
        if self.norm:
            return nn.Dense(2)(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))


def test_a_layer_that_is_always_active_is_named():
    with pytest.raises(UserError, match=r"draws random numbers in evaluation.*Dropout_0"):
        fit(Always(norm=False))
    with pytest.raises(UserError, match=r"updates variables in evaluation.*BatchNorm_0"):
        fit(Always(norm=True))


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
        fit(Train(), task=task)
    with pytest.raises(UserError, match=r"array of shape \(32,\) into 'losses': sow one number"):
        fit(PerExample(), task=task)


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


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.perturb("hidden", nn.Dense(4)(x)))


def test_perturbations_of_the_shape_of_a_batch_are_no_state():
    run = jdl.train(make_experiment(model=Perturbed(), steps=2, num_microbatches=2))
    assert run.state.collections == {}


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
