"""Attacks and corruptions change what they promise, and seeds make an ensemble."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.audit.robustness import _blurred, _Inputs, entropy, robustness
from jdl.errors import UserError


def test_corruptions_stay_in_the_range_and_are_harder_by_severity(planted):
    arrays = dict(planted.data.pipeline("test").examples(np.arange(64)))
    inputs = _Inputs(planted, arrays)
    batch = {**{k: jnp.asarray(v) for k, v in arrays.items()}, "mask": jnp.ones(64, bool)}
    low, high = arrays["image"].min(), arrays["image"].max()

    @jax.jit
    def corrupt(batch):
        key, each = jax.random.key(0), [inputs.corruptions(level) for level in (1, 5)]
        return [{n: f(inputs._state, batch, key)["image"] for n, f in x.items()} for x in each]

    mild, severe = corrupt(batch)
    names = {"gaussian_noise", "gaussian_blur", "contrast", "brightness", "pixelate"}
    assert set(mild) == names
    for name in names:
        far = [np.abs(x[name] - arrays["image"]).mean() for x in (mild, severe)]
        assert 0 < far[0] < far[1]
        assert low <= severe[name].min() <= severe[name].max() <= high


def test_an_attack_stays_within_its_radius_and_the_range(planted):
    arrays = dict(planted.data.pipeline("test").examples(np.arange(64)))
    inputs = _Inputs(planted, arrays)
    batch = {**{k: jnp.asarray(v) for k, v in arrays.items()}, "mask": jnp.ones(64, bool)}
    reach = arrays["image"].max() - arrays["image"].min()
    for steps in (1, 5):
        attack = jax.jit(inputs.attack(0.1, steps))
        changed = attack(inputs._state, batch, jax.random.key(0))["image"]
        far = np.abs(np.asarray(changed) - arrays["image"]).max()
        assert 0.02 * reach < far <= 0.1 * reach + 1e-6
        assert changed.min() >= arrays["image"].min() - 1e-6
        assert changed.max() <= arrays["image"].max() + 1e-6


def test_a_blur_keeps_the_mean_and_spreads_a_point():
    point = jnp.zeros((1, 15, 15, 1)).at[0, 7, 7, 0].set(1.0)
    found = np.asarray(jax.jit(lambda x: _blurred(x, 1.0))(point))[0, ..., 0]
    assert found.sum() == pytest.approx(1, abs=1e-5)
    x = np.arange(-7, 8)
    np.testing.assert_allclose((found.sum(0) * x**2).sum(), 1.0, rtol=0.05)


def test_entropy_is_scipys():
    from scipy.stats import entropy as scipys

    p = np.random.default_rng(0).dirichlet(np.ones(4), 10)
    np.testing.assert_allclose(entropy(p), scipys(p, axis=1), rtol=1e-12)
    assert entropy(np.array([1.0, 0.0])) == 0


def test_integers_and_severities_out_of_range_are_refused(planted):
    with pytest.raises(UserError, match="from 1 to 5, not 6"):
        robustness(planted, severity=6)
    with pytest.raises(UserError, match="reads integers: attacks"):
        _Inputs(planted, {"image": np.ones((4, 8, 8, 1), int), "label": np.zeros(4, int)})


def test_predictions_of_seeds_are_averaged(seeds, tmp_path, command):
    (tmp_path / "new.csv").write_text("x\n1\n-1\n")
    found = []
    for place in (seeds, seeds / "seed-0", seeds / "seed-1"):
        code, out, _ = command("predict", place, "new.csv")
        assert code == 0
        lines = [json.loads(line) for line in out.splitlines()]
        found.append(np.array([line["probabilities"] for line in lines]))
    np.testing.assert_allclose(found[0], (found[1] + found[2]) / 2, atol=2e-6)


def test_a_command_prints_and_writes_rows(seeds, command):
    code, out, _ = command("robustness", seeds / "seed-0", "--samples", 2)
    assert code == 0
    rows = ["test", "fgsm", "pgd", "gaussian_noise", "missing", "mc_dropout", "ensemble"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == rows
    written = json.loads((seeds / "seed-0/robustness.json").read_text())
    found = {row["name"]: row for row in written["rows"]}
    assert list(found) == rows
    assert min(found["fgsm"]["nll"], found["pgd"]["nll"]) > found["test"]["nll"]
    assert found["mc_dropout"]["mutual_information"] > 0
    assert found["ensemble"]["mutual_information"] > 0
    assert 0 <= found["missing"]["ood_auroc"] <= 1
