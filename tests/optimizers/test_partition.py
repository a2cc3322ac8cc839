"""Optimizers by parameter, normalized kernels, and decay of all parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl.config.overrides import override
from jdl.errors import UserError
from jdl.models import MLP
from jdl.optimizers import (
    SGD,
    Adam,
    Linear,
    Lookahead,
    Muon,
    Partition,
    ReduceOnPlateau,
    averaged_params,
)
from tests.optimizer_steps import network, run, values
from tests.runs import make_experiment


def gradients(params, count=3):
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(values(i, *x.shape)), params) for i in range(count)
    ]


PARTS = (
    ("Dense_0.bias", SGD(0.5, momentum=0.9, schedule=Linear(until=0.5))),
    ("*.bias", Adam(0.1, ema_decay=0.5)),
    ("*.kernel", Muon(0.2)),
    ("*", SGD(0.3, clip_norm=0.1)),
)


def part_of(name, leaf_name):
    if leaf_name == "kernel":
        return 2
    return 3 if leaf_name != "bias" else 0 if name == "Dense_0" else 1


def test_each_part_learns_as_if_alone_and_the_factor_scales_all():
    params = {name: leaf for name, leaf in network().items() if name != "temperature"}
    given = gradients(params)
    found, state = run(Partition(parts=PARTS), params, given)
    for index, (_, optimizer) in enumerate(PARTS):

        def kept(tree, index=index):
            return {
                (name, leaf): array
                for name, leaves in tree.items()
                for leaf, array in leaves.items()
                if part_of(name, leaf) == index
            }

        def nested(flat):
            tree = {}
            for (name, leaf), array in flat.items():
                tree.setdefault(name, {})[leaf] = array
            return tree

        alone, own = run(optimizer, nested(kept(params)), [nested(kept(each)) for each in given])
        for (name, leaf), array in kept(found[-1]).items():
            np.testing.assert_array_equal(array, alone[-1][name][leaf])
        averages = averaged_params(state, found[-1])
        for (name, leaf), array in kept(averages).items():
            np.testing.assert_array_equal(array, averaged_params(own, alone[-1])[name][leaf])
    halved, _ = run(Partition(0.5, parts=(("*", SGD(0.4)),)), params, given)
    plain, _ = run(SGD(0.2), params, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), halved[-1], plain[-1])


def test_a_part_may_step_once_in_several_batches_and_its_schedule_counts_its_own_steps():
    params = {"critic": {"w": jnp.zeros(2)}, "generator": {"w": jnp.zeros(2)}}
    given = gradients(params, 6)
    slow = Adam(0.1, schedule=Linear(), ema_decay=0.5, every=3)
    parts = (("critic", SGD(0.2)), ("generator", slow))
    found, state = run(Partition(parts=parts), params, given)
    own = [{"w": each["generator"]["w"]} for each in given]
    alone, _ = run(dataclasses.replace(slow, every=1), {"w": jnp.zeros(2)}, own[2::3])
    for step, each in enumerate(found, 1):
        taken = step // 3
        expected = alone[taken - 1]["w"] if taken else np.zeros(2)
        np.testing.assert_array_equal(each["generator"]["w"], expected)
    critic, _ = run(SGD(0.2), {"w": jnp.zeros(2)}, [{"w": each["critic"]["w"]} for each in given])
    np.testing.assert_array_equal(found[-1]["critic"]["w"], critic[-1]["w"])
    assert (
        averaged_params(state, found[-1])["generator"]["w"] != found[-1]["generator"]["w"]
    ).all()
    with pytest.raises(UserError, match=r"Adam\.every must be at least 1; it is 0"):
        Adam(every=0)


def test_a_frozen_player_stays_and_the_others_learn():
    params = {"critic": {"w": jnp.ones(2)}, "generator": {"w": jnp.ones(2), "v": jnp.ones(2)}}
    given = gradients(params)
    parts = (("critic", Adam(0.1)), ("generator", SGD(0.1, frozen=("generator.v",))))
    found, _ = run(Partition(parts=parts, frozen=("critic",)), params, given)
    np.testing.assert_array_equal(found[-1]["critic"]["w"], 1)
    np.testing.assert_array_equal(found[-1]["generator"]["v"], 1)
    assert (found[-1]["generator"]["w"] != 1).all()


def test_patterns_and_parameters_without_a_match_are_named():
    params = network()
    for parts, message in (
        ((("*.bias", SGD()),), r"the parameter Conv_0\.kernel matches none of the patterns"),
        (
            (("*", SGD()), ("Dense_9.*", SGD())),
            r"optimizer\.parts\.1: no parameter matches 'Dense_9\.\*' \(they are Co",
        ),
        ((("Dense_O", SGD()), ("*", SGD())), r"parts\.0: .* did you mean 'Dense_0'"),
        (
            (("Dense_0", SGD()), ("*", SGD()), ("*.bias", Adam())),
            r"optimizer\.parts\.2: '\*\.bias' has no parameters left: earlier patterns, "
            r"'Dense_0' and '\*', match all of its: list the more specific first",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Partition(parts=parts).build(3).init(params)
    with pytest.raises(UserError, match="parts must be pairs of a pattern and an optimizer"):
        Partition()
    with pytest.raises(UserError, match="weight_decay must be 0, and set in the parts"):
        Partition(parts=PARTS, weight_decay=0.1)


def test_a_run_overrides_a_part_by_its_path_and_its_record_opens(tmp_path):
    optimizer = Partition(parts=(("*.bias", SGD(0.1)), ("*", Adam(0.01))))
    experiment = make_experiment(optimizer=optimizer, model=MLP((4,), 3))
    changed = override(experiment, {"optimizer.parts.1.1.learning_rate": 0.5})
    assert changed.optimizer.parts[1][1] == Adam(0.5)
    run_ = jdl.train(experiment, tmp_path / "run")
    again = jdl.open(tmp_path / "run")
    assert again.experiment.optimizer == optimizer
    x = values(0, 5, 4)
    np.testing.assert_array_equal(again.predict(x), run_.predict(x))


def test_normalized_kernels_have_the_norm_of_their_outputs_before_each_step():
    params = network()
    (given,) = gradients(params, 1)
    muon = Muon(0.3, rms=None, weight_decay=0.0, adam_names=("Dense_0",))
    kernel = params["Conv_0"]["kernel"]
    scaled = kernel * np.sqrt(5) / np.linalg.norm(kernel)  # (3, 3, 2, 5): 5 outputs
    before = {**params, "Conv_0": {"kernel": scaled}}
    expected, _ = run(muon, before, [given])
    found, _ = run(dataclasses.replace(muon, normalize=True), params, [given])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[0], expected[0]
    )
    moved = np.asarray(found[0]["Conv_0"]["kernel"] - scaled).reshape(18, 5)
    spectrum = np.linalg.svd(moved / 0.3, compute_uv=False)
    assert (np.abs(spectrum - 0.9) < 0.4).all()  # Newton-Schulz' range
    still = {**params, "Conv_0": {"kernel": jnp.zeros_like(kernel)}}
    zero, _ = run(dataclasses.replace(muon, normalize=True), still, [given])
    assert np.isfinite(zero[0]["Conv_0"]["kernel"]).all()


@pytest.mark.parametrize("decay_biases", [False, True])
def test_penalties_reach_biases_where_that_is_set_as_in_pytorchs_sgd(decay_biases):
    params = network()
    given = gradients(params)
    sgd = SGD(0.1, momentum=0.8, nesterov=True, l2=0.05, decay_biases=decay_biases)
    found, _ = run(sgd, params, given)

    def torchs(leaf, *gradients, decays):
        velocity = np.zeros_like(leaf)
        for g in gradients:
            g = g + (0.1 * leaf if decays else 0)  # weight_decay is 2 * l2
            velocity = 0.8 * velocity + g
            leaf = leaf - 0.1 * (g + 0.8 * velocity)
        return leaf

    for name, leaf, decays in (
        ("Dense_0", "kernel", True),
        ("Dense_0", "bias", decay_biases),
        ("LayerNorm_0", "scale", decay_biases),
    ):
        each = [np.asarray(g[name][leaf]) for g in given]
        expected = torchs(np.asarray(params[name][leaf]), *each, decays=decays)
        np.testing.assert_allclose(found[-1][name][leaf], expected, rtol=1e-5, atol=1e-6)
    decoupled = dataclasses.replace(sgd, l2=0.0, l1=0.1, weight_decay=0.2)
    moved, _ = run(decoupled, params, [optax.tree.zeros_like(params)])
    bias, before = moved[0]["Dense_0"]["bias"], params["Dense_0"]["bias"]
    assert (np.asarray(bias) != np.asarray(before)).all() == decay_biases


def test_a_part_averages_the_parameters_that_its_scaled_steps_lead_to():
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    given = gradients(params)
    own = Adam(0.2, schedule=Linear(), ema_decay=0.9)
    factored = Partition(0.5, parts=(("*", Adam(0.4, ema_decay=0.9)),), schedule=Linear())
    (found, state), (expected, other) = (run(each, params, given) for each in (factored, own))
    means = averaged_params(state, found[-1]), averaged_params(other, expected[-1])
    for pair in ((found[-1], expected[-1]), means):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *pair)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lr_multipliers", {"lr_multipliers": (("w", 2.0),)}),
        ("lookahead", {"lookahead": Lookahead()}),
        ("schedule", {"schedule": ReduceOnPlateau()}),
    ],
)
def test_no_change_of_steps_after_a_part_has_averaged_the_parameters(name, options):
    with pytest.raises(UserError, match=rf"optimizer\.{name} would .*parts\.0 after its ema"):
        Partition(parts=(("*", Adam(ema_decay=0.9)),), **options)
    Partition(parts=(("*", Adam()),), ema_decay=0.9, **options)
