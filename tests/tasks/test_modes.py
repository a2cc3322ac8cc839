"""Names of the mode of a module, and layers that are always or never active."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.tasks import Classification, forward

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
