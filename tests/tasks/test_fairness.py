"""Terms of fairness equal their definitions, hold under every strategy, and reduce the gap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Reweighed, Scale
from jdl.data.sources import read_array
from jdl.errors import UserError
from jdl.models import MLP, Debiased
from jdl.optimizers import Adam
from jdl.parallel import DataParallel, Pmap, Single
from jdl.tasks import AdversarialClassification, Classification, FairClassification
from jdl.tasks.fairness import one_hot_groups


def biased(rows, seed=0):
    """Examples of which the group moves the label, and an input that tells the group."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, rows).astype(np.int32)
    skill = rng.normal(size=rows)
    label = (skill + 1.2 * group + 0.3 * rng.normal(size=rows) > 0.6).astype(np.int32)
    other = rng.integers(0, 3, rows).astype(np.int32)
    x = np.stack([skill, group + 0.3 * rng.normal(size=rows)], 1).astype(np.float32)
    return {"image": x, "label": label, "group": group, "other": other}


ARRAYS = {"train": biased(1024), "test": biased(2000, 1)}


def experiment(task, **changes):
    settings = {
        "model": MLP(widths=(16,), features=2),
        "task": task,
        "data": Arrays(ARRAYS, validation_fraction=0.0),
        "optimizer": Adam(1e-2),
        "strategy": Single(),
        "hooks": (),
        "steps": 120,
        "batch_size": 256,
    }
    return jdl.Experiment(**settings | changes)


def gap(run):
    chosen = run.predict(ARRAYS["test"]["image"])[:, 1] > 0.5
    group = ARRAYS["test"]["group"]
    return abs(chosen[group == 1].mean() - chosen[group == 0].mean())


def test_variances_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    group, other = rng.integers(0, 2, 40), rng.integers(-1, 3, 40)
    mask = np.arange(40) < 36
    batch = {k: jnp.asarray(v) for k, v in
             {"label": labels, "group": group, "other": other, "mask": mask}.items()}  # fmt: skip
    members = np.asarray(one_hot_groups(batch, ("group", "other"), (2, 3)))
    for row in range(40):
        known = mask[row] and other[row] >= 0
        assert members[row].sum() == known
        assert not known or members[row].argmax() == group[row] * 3 + other[row]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kept = (members.sum(1) > 0, members.argmax(1))

    def variance(rows, columns):
        means = [p[kept[0] & rows & (kept[1] == g)][:, columns] for g in range(6)]
        means = np.array([each.mean(0) for each in means if len(each)])
        return means.var(0).sum()

    every = np.ones(40, bool)
    expected = {
        "demographic_parity": variance(every, [0, 1, 2]),
        "equalized_odds": sum(variance(labels == c, [0, 1, 2]) for c in range(3)),
        "equal_opportunity": sum(variance(labels == c, [c]) for c in range(3)),
    }
    for criterion, value in expected.items():
        task = FairClassification(group=("group", "other"), num_groups=(2, 3), criterion=criterion)
        found = jax.jit(task._variance)(jnp.asarray(logits), batch, jnp.asarray(members))
        assert float(found) == pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def plain():
    return jdl.train(experiment(Classification()))


@pytest.mark.parametrize("criterion", ["demographic_parity", "worst_group"])
def test_a_term_does_what_it_is_for(plain, criterion):
    strength = {"demographic_parity": 20.0, "worst_group": 0.1}[criterion]
    task = FairClassification(criterion=criterion, strength=strength)
    run = jdl.train(experiment(task))
    if criterion == "demographic_parity":
        assert gap(run) < 0.3 * gap(plain)
        return
    weights = np.asarray(run.state.collections["group_dro"]["weights"])
    assert weights.sum() == pytest.approx(1)
    test = ARRAYS["test"]

    def worst(found):
        p = found.predict(test["image"])[np.arange(2000), test["label"]]
        return max(-np.log(p[test["group"] == g]).mean() for g in (0, 1))

    assert worst(run) < worst(plain) + 0.02


@pytest.mark.parametrize(
    ("strategy", "criterion"),
    [(DataParallel(), "worst_group"), (Pmap(), "demographic_parity")],
)
def test_the_term_is_that_of_the_whole_batch(strategy, criterion):
    task = FairClassification(criterion=criterion, strength=2.0)
    found = [jdl.train(experiment(task, strategy=each, steps=2)) for each in (Single(), strategy)]
    one, other = (jax.tree.leaves(jax.device_get(each.params)) for each in found)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    with pytest.raises(UserError, match="couples all rows"):
        jdl.train(experiment(task, num_microbatches=2))


def test_an_adversary_is_deceived_and_does_not_collapse(plain):
    task = AdversarialClassification(strength=3.0)
    model = Debiased(MLP(widths=(16,), features=2), num_groups=2)
    run = jdl.train(experiment(task, model=model, steps=300))
    assert gap(run) < 0.5 * gap(plain)
    scores = run.evaluate("test")
    assert scores["accuracy"] > 0.8
    assert scores["adversary_accuracy"] < scores["largest_group"] + 0.1
    assert task.format_prediction(np.float32([0.2, 0.8]), ("a", "b"))["prediction"] == "b"


def test_reweighing_makes_class_and_group_independent():
    data = Reweighed(Arrays(ARRAYS, validation_fraction=0.0), group=("group", "other"))
    source = data.splits()["train"]
    weight = np.array([source[i]["weight"] for i in range(len(source))])
    y, cell = ARRAYS["train"]["label"], 3 * ARRAYS["train"]["group"] + ARRAYS["train"]["other"]
    shares = [np.average(y[cell == g], weights=weight[cell == g]) for g in range(6)]
    np.testing.assert_allclose(shares, y.mean(), atol=1e-6)
    assert weight.sum() == pytest.approx(len(y), rel=1e-6)
    assert {x["weight"] for x in data.splits()["test"]} == {1.0}
    assert read_array(source, "label") is not None
    with pytest.raises(UserError, match="has no array 'sx' with one value of each example"):
        Reweighed(Arrays(ARRAYS), group="sx").splits()
    with pytest.raises(UserError, match="are its own"):
        Reweighed(Arrays(ARRAYS, device_transforms=(Scale(),)))
    batch = {"label": jnp.asarray(y[:5]), "weight": jnp.asarray(weight[:5])}
    p = np.random.default_rng(0).dirichlet((1, 1), 5).astype(np.float32)
    loss = Classification(example_weights="weight").objective(
        jnp.log(jnp.asarray(p)), {**batch, "mask": jnp.arange(5) < 4}
    )
    own = -np.log(p[np.arange(5), y[:5]])
    assert loss.compute() == pytest.approx(np.average(own[:4], weights=weight[:4]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "sx"}, r"split 'train' has no array 'sx' .*name the groups with task\.group"),
        ({"group": "other"}, r"'other' holds 2 at row \d+, where task\.num_groups says 2"),
        ({"group": "image"}, r"'image' has shape \(1024, 2\)"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        jdl.train(experiment(FairClassification(**options)))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match=r"num_groups has the number of groups, at least 2, of each"
    ):
        FairClassification(group=("a", "b"))
    with pytest.raises(UserError, match="may not be negative"):
        FairClassification(strength=-1.0)
    with pytest.raises(UserError, match="labeled has no effect"):
        dataclasses.replace(FairClassification(), labeled="seen")
