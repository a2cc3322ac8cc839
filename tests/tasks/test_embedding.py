"""Losses of embeddings against their equations in NumPy; a run, its probes and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import jdl
from jdl import Experiment
from jdl.data import Arrays, Mixture, Stream, Views
from jdl.errors import UserError
from jdl.hooks import Checkpoint, Evaluate
from jdl.metrics import EqualErrorRate
from jdl.models import MLP, Projected
from jdl.optimizers import SGD, Adam
from jdl.parallel import Pmap, Single
from jdl.tasks import (
    BarlowTwins,
    Classification,
    Embedding,
    KNNProbe,
    LinearProbe,
    NTXent,
    SupCon,
    VICReg,
)
from jdl.tasks.probes import check_probes

RNG = np.random.default_rng(0)
VIEWS = RNG.normal(size=(7, 2, 5)).astype(np.float32)
LABELS = np.array([0, 1, 1, 2, 0, 1, 9])
MASK = np.arange(7) < 6
"""Of whose rows the last is padding."""


def contrast(temperature, labels):
    """SupCon's equation 2, row by row; NT-Xent's if all labels differ."""
    x = VIEWS[MASK].transpose(1, 0, 2).reshape(12, 5)
    x, labels = x / np.linalg.norm(x, axis=1, keepdims=True), np.tile(labels[MASK], 2)
    losses = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        log = scipy.special.logsumexp([x[i] @ x[j] / temperature for j in others])
        same = [x[i] @ x[j] / temperature - log for j in others if labels[j] == labels[i]]
        losses.append(-np.mean(same))
    return np.mean(losses)


def vicreg():
    a, b = VIEWS[MASK, 0], VIEWS[MASK, 1]
    variance = covariance = 0.0
    for x in (a, b):
        own = np.cov(x, rowvar=False)
        variance += np.maximum(0, 1 - np.sqrt(np.diag(own) + 1e-4)).mean() / 2
        covariance += (own[~np.eye(5, dtype=bool)] ** 2).sum() / 5
    return 25 * ((a - b) ** 2).mean() + 25 * variance + covariance


def barlow():
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in VIEWS[MASK].transpose(1, 0, 2))
    own = a.T @ b / 6
    off = (own[~np.eye(5, dtype=bool)] ** 2).sum()
    return ((np.diag(own) - 1) ** 2).sum() + 0.005 * off


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (NTXent(temperature=0.3), lambda: contrast(0.3, np.arange(7))),
        (SupCon(temperature=0.3), lambda: contrast(0.3, LABELS)),
        (VICReg(), vicreg),
        (BarlowTwins(), barlow),
    ],
    ids=lambda x: type(x).__name__,
)
def test_losses_are_those_of_the_papers_and_leave_padding_out(objective, expected):
    views = np.where(MASK[:, None, None], VIEWS, np.nan)
    found = objective(jnp.asarray(views), jnp.asarray(LABELS), jnp.asarray(MASK))
    assert found.compute() == pytest.approx(expected(), rel=1e-5)
    with pytest.raises(UserError, match="set batch_size to 2 or more"):
        objective(jnp.asarray(VIEWS[:1]), jnp.asarray(LABELS[:1]), jnp.asarray(MASK[:1]))
    with pytest.raises(UserError, match=r"shape \(7, 3, 3, 8\), where the loss needs embeddings"):
        objective(jnp.zeros((7, 2, 3, 3, 8)), jnp.asarray(LABELS), jnp.asarray(MASK))


@dataclasses.dataclass(frozen=True)
class Noise:
    """Adds noise of each row's key."""

    def __call__(self, batch, keys):
        if keys is None:
            return batch
        noise = jax.vmap(lambda key: jax.random.normal(key, batch["image"].shape[1:]))(keys)
        return {**batch, "image": batch["image"] + 0.3 * noise}


LABEL = np.arange(90) % 3
IMAGE = (np.eye(3)[LABEL] @ RNG.normal(size=(3, 6)) * 2 + RNG.normal(size=(90, 6))).astype("f")
PROBES = (
    KNNProbe(num_neighbors=3, num_train=30, splits=("validation", "test")),
    LinearProbe(num_train=9),
    LinearProbe(),
)


def make(**changes):
    arrays = {"image": IMAGE, "label": LABEL}
    data = Arrays({"train": arrays}, device_transforms=(Views(2), Noise()), test_fraction=0.3)
    fields = {
        "model": Projected(MLP((8,), 6), MLP((), 4)),
        "task": Embedding(probes=PROBES, metrics=(EqualErrorRate(threshold=True),)),
        "data": data, "optimizer": Adam(0.01), "strategy": Single(), "steps": 6, "batch_size": 14,
        "hooks": (Evaluate(every=3), Checkpoint(every=4)),
    }  # fmt: skip
    return Experiment(**{**fields, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return jdl.train(make(), tmp_path_factory.mktemp("embedding") / "whole")


def test_probes_follow_training_and_score_the_encoder(whole):
    rows = whole.history["validation"]
    assert rows["step"] == [3, 6]
    assert len(rows["knn_accuracy"]) == 2
    scores = whole.result["metrics"]["test"]
    assert {"knn_accuracy", "linear_accuracy", "linear_accuracy_9"} <= set(scores)
    train, test = (whole.pipeline(name).arrays for name in ("train", "test"))
    x, rows = whole.predict(train["image"]), whole.predict(test["image"])
    assert x.shape == (len(train["image"]), 6), "before the projector"
    scaler = StandardScaler().fit(x)
    classifier = LogisticRegression(max_iter=2000).fit(scaler.transform(x), train["label"])
    accuracy = classifier.score(scaler.transform(rows), test["label"])
    assert scores["linear_accuracy"] == pytest.approx(accuracy)
    unit, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (rows, x))
    others = others[chosen := PROBES[0].choose(train["label"])]
    right = []
    for row, label in zip(unit, test["label"], strict=True):
        near = others @ row
        votes = np.zeros(3)
        for index in np.argsort(-near)[:3]:
            votes[train["label"][chosen[index]]] += np.exp(near[index] / 0.07)
        right.append(votes.argmax() == label)
    assert scores["knn_accuracy"] == pytest.approx(np.mean(right))
    assert whole.higher_is_better("knn_accuracy")


def test_it_resumes_bit_equal_and_gives_the_same_on_devices(whole, tmp_path):
    jdl.train(make(steps=5), tmp_path / "broken")
    again = jdl.train(make(), tmp_path / "broken")
    assert again.result["params_sha256"] == whole.result["params_sha256"]
    other = jdl.train(make(strategy=Pmap(2), hooks=()))
    np.testing.assert_allclose(other.predict(IMAGE), whole.predict(IMAGE), rtol=1e-3, atol=1e-4)


def test_examples_of_a_probe_are_of_each_class_alike_many():
    labels = RNG.permutation(np.repeat([0, 1, 2], [50, 20, 4]))
    chosen = LinearProbe(num_train=14).choose(labels)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 4]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, LinearProbe(num_train=14).choose(labels))
    assert not np.array_equal(chosen, LinearProbe(num_train=14, seed=1).choose(labels))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: check_probes((LinearProbe,)), r"such as LinearProbe\(\)"),
        (lambda: Embedding(probes=(LinearProbe(), LinearProbe(seed=1))), "two probes named 'linea"),
        (lambda: LinearProbe(num_train=1), "needs num_train >= 2"),
        (lambda: LinearProbe(inverse_l2=0.0), "inverse_l2 must be above 0"),
        (lambda: KNNProbe(num_neighbors=0), "num_neighbors >= 1"),
        (lambda: KNNProbe().choose(np.zeros(9)), "two classes or more"),
        (lambda: LinearProbe(num_train=99).choose(np.arange(9)), "there are 9 training examples"),
        (lambda: NTXent(temperature=0.0), "temperature must be above 0"),
    ],
)
def test_what_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        task()


def test_data_that_is_refused():
    data = make().data
    plain = dataclasses.replace(data, device_transforms=())
    with pytest.raises(UserError, match=r"add Views\(2\) to data.device_transforms"):
        jdl.train(make(data=plain))
    arrays = {"image": IMAGE, "label": LABEL + 0.5}
    with pytest.raises(UserError, match="compared by one integer label"):
        jdl.train(make(data=Arrays({"train": arrays}, device_transforms=(Views(2),))))
    with pytest.raises(UserError, match="num_microbatches to 1"):
        jdl.train(make(num_microbatches=2))
    mixed = Mixture((Stream("a", plain), Stream("b", plain)), device_transforms=(Views(2),))
    with pytest.raises(UserError, match="of which a Mixture may lack some"):
        jdl.train(make(data=mixed, hooks=(), optimizer=SGD(0.0), steps=1)).evaluate("test")


def test_modules_of_modules_compute_in_the_precision():
    model = make(precision="bf16").compute_model()
    assert {model.encoder.dtype, model.projector.dtype} == {jnp.bfloat16}
    assert Classification().probes == ()
