"""Modules that are frozen, have their own learning rates, or start from another run's weights."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.hooks import Checkpoint, Evaluate
from jdl.models import CNN, MLP
from jdl.optimizers import SGD, Adam, AdamW, Muon, layer_decay
from jdl.parallel import Single
from jdl.pretrained import InitFrom
from jdl.step import update
from jdl.trainer.training_run import TrainingRun
from tests.optimizer_steps import network, run, values


def gradients(params, count=3):
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(values(i, *x.shape)), params) for i in range(count)
    ]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1, momentum=0.9),
        Adam(0.1, l2=0.1, ema_decay=0.5),
        AdamW(0.1, weight_decay=0.5, clip_norm=1.0),
        Muon(0.1),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns_as_if_alone(optimizer):
    params = network()
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[0].set(-0.0)
    frozen = ("Dense_0", "Heads_0.scale")
    given = gradients(params)
    found, _ = run(dataclasses.replace(optimizer, frozen=frozen), params, given)
    for names in (("Dense_0", "kernel"), ("Dense_0", "bias"), ("Heads_0", "scale")):
        before, after = params, found[-1]
        for name in names:
            before, after = before[name], after[name]
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()

    def rest(tree):
        kept = {name: leaf for name, leaf in tree.items() if name != "Dense_0"}
        return {**kept, "Heads_0": {"bias": tree["Heads_0"]["bias"]}}

    alone, _ = run(optimizer, rest(params), [rest(tree) for tree in given])
    jax.tree.map(np.testing.assert_array_equal, rest(found[-1]), alone[-1])


def test_the_longest_path_s_factor_scales_a_module_s_rate():
    params, rates = network(), (("Heads_0", 0.5), ("Heads_0.bias", 0.0), ("Conv_0", 2.0))
    given = gradients(params, 1)
    plain, _ = run(SGD(0.1), params, given)
    scaled, _ = run(SGD(0.1, lr_multipliers=rates), params, given)

    def moved(tree, *names):
        before = params
        for name in names:
            tree, before = tree[name], before[name]
        return np.asarray(tree - before)

    for names, factor in (
        (("Heads_0", "scale"), 0.5),
        (("Heads_0", "bias"), 0.0),
        (("Conv_0", "kernel"), 2.0),
        (("Dense_0", "kernel"), 1.0),
    ):
        expected = factor * moved(plain[-1], *names)
        np.testing.assert_allclose(moved(scaled[-1], *names), expected, atol=1e-6)


def test_rates_decay_from_layer_to_layer():
    found = layer_decay(("tokens", "norm"), "block_0", "block_1", decay=0.5)
    assert dict(found) == {"block_1": 0.5, "block_0": 0.25, "tokens": 0.125, "norm": 0.125}
    for decay in (0.0, 1.5):
        with pytest.raises(jdl.UserError, match="a decay above 0 and at most 1"):
            layer_decay("block_0", decay=decay)


def test_gradients_of_what_is_frozen_are_not_computed(tmp_path):
    """They are zeros in the step, which XLA does not compute; the rest is what it was."""
    changed = make_experiment(optimizer=SGD(0.05, frozen=("Dense_0",)))
    run = TrainingRun(changed, "run", tmp_path)
    assert run.program.is_frozen("Dense_0.kernel")
    assert not run.program.is_frozen("logits.kernel")
    assert make_experiment().is_frozen is None

    def flops(program):
        step = jax.jit(lambda state, batch: update(program, state, batch)[0])
        lowered = step.lower(run.compiled.abstract_state, run.batch)
        return lowered.compile().cost_analysis()["flops"]

    everything = dataclasses.replace(run.program, is_frozen=None)
    assert flops(run.program) < flops(everything)


@pytest.mark.parametrize(
    ("optimizer", "complaint"),
    [
        (SGD(frozen=("Dense_9",)), "the model has no module 'Dense_9'.*did you mean 'Dense_0'"),
        (SGD(lr_multipliers=(("Desne_0", 1.0),)), "did you mean 'Dense_0'"),
        (SGD(frozen=("Dense_0", "logits")), "leaves nothing to train"),
    ],
)
def test_a_module_that_is_not_there_is_said_before_training(optimizer, complaint, tmp_path):
    with pytest.raises(jdl.UserError, match=complaint):
        jdl.train(make_experiment(optimizer=optimizer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def make_experiment(outputs=3, labels=3, seed=0, **changes):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, labels, 48)
    image = rng.normal(size=(48, 8, 8, 1)) + label[:, None, None, None]
    settings = {
        "model": MLP(widths=(6,), features=outputs),
        "data": Arrays({"train": {"image": image, "label": label}}, validation_fraction=0.2),
        "optimizer": SGD(0.05),
        "strategy": Single(),
        "hooks": (Evaluate(every=2), Checkpoint()),
        "steps": 6,
        "batch_size": 8,
        **changes,
    }
    return jdl.Experiment(**settings)


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def beginning(experiment, workdir):
    """Parameters and collections that a run begins with: those after a step at rate 0."""
    experiment = dataclasses.replace(experiment, optimizer=SGD(0.0), steps=1, hooks=())
    state = jdl.train(experiment, workdir).gather_state()
    return leaves(state.params), leaves(state.collections)


@pytest.mark.parametrize("optimizer", [SGD(0.05), SGD(0.05, ema_decay=0.5)])
def test_a_run_begins_with_what_another_is_scored_with(optimizer, tmp_path):
    first = jdl.train(make_experiment(optimizer=optimizer), tmp_path / "first")
    scored = leaves(first.evaluation_state(first.gather_state()).params)
    init_from = InitFrom(run=str(tmp_path / "first"))
    found, _ = beginning(make_experiment(seed=1, init_from=init_from), tmp_path / "second")
    assert found.keys() == scored.keys()
    for path, array in scored.items():
        np.testing.assert_array_equal(found[path], array)


def test_some_modules_are_taken_with_their_statistics_and_others_begin_fresh(tmp_path):
    model = CNN(channels=(4,), dense=(5,), num_classes=3, batch_norm=True)
    first = jdl.train(make_experiment(model=model), tmp_path / "first").gather_state()
    other = make_experiment(model=model.clone(num_classes=2), labels=2, seed=1)
    init_from = InitFrom(run=str(tmp_path / "first"), skip=("logits",))
    fresh, _ = beginning(other, tmp_path / "fresh")
    found, statistics = beginning(
        dataclasses.replace(other, init_from=init_from, strategy=jdl.parallel.DataParallel()),
        tmp_path / "second",
    )
    for path, array in found.items():
        source = fresh if path.startswith("logits") else leaves(first.params)
        np.testing.assert_array_equal(array, source[path])
    given = leaves(first.collections)
    # After one step, a tenth of the way from what was given to the batch's own.
    (mean,) = (path for path in given if path.endswith("mean"))
    assert np.abs(statistics[mean] - given[mean]).max() < np.abs(given[mean]).max()


def test_a_run_that_goes_on_keeps_its_own_weights(tmp_path):
    jdl.train(make_experiment(), tmp_path / "first")
    second = make_experiment(init_from=InitFrom(run=str(tmp_path / "first")))
    whole = jdl.train(second, tmp_path / "whole").gather_state()
    jdl.train(dataclasses.replace(second, steps=3), tmp_path / "part")
    resumed = jdl.train(second, tmp_path / "part").gather_state()
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"run": "nowhere"}, "nowhere does not exist: train that run first"),
        ({"modules": ("logit",)}, "no module 'logit' .*; did you mean 'logits'"),
        (
            {},
            r"logits.bias, of shape \(2,\) in this model, has shape \(3,\) in .*; .*init_from.skip",
        ),
    ],
)
def test_weights_that_do_not_fit(given, complaint, tmp_path):
    jdl.train(make_experiment(), tmp_path / "first")
    init_from = InitFrom(**{"run": str(tmp_path / "first"), **given})
    with pytest.raises(jdl.UserError, match=complaint):
        jdl.train(make_experiment(outputs=2, labels=2, init_from=init_from), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_deeper_network_has_no_counterpart(tmp_path):
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="extra")(nn.Dense(6)(x.reshape(len(x), -1)))

    jdl.train(make_experiment(), tmp_path / "first")
    with pytest.raises(jdl.UserError, match=r"params.extra.bias, .* is not in "):
        jdl.train(
            make_experiment(model=Deep(), init_from=InitFrom(run=str(tmp_path / "first"))),
            tmp_path / "second",
        )
