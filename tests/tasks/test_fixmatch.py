"""FixMatch against its equations in NumPy, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jdl
from jdl import Experiment
from jdl.data import Arrays, Mixture, OnViews, Scale, Stream, Views
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Pmap, Single
from jdl.state import TrainState
from jdl.tasks import FixMatch, with_row_keys

RNG = np.random.default_rng(0)


def test_the_loss_is_that_of_the_paper():
    arrays = {
        "image": RNG.normal(size=(12, 2, 2, 2, 1)).astype(np.float32),
        "label": np.arange(12) % 3,
        "labeled": np.arange(12) < 4,
        "mask": np.arange(12) < 11,
    }
    key, model = jax.random.key(0), MLP((), 3)
    batch = with_row_keys({name: jnp.asarray(x) for name, x in arrays.items()}, key)
    task = FixMatch(confidence=0.6, loss_terms=(("supervised", 1.0), ("consistency", 2.0)))
    params = task.init(model, key, batch)["params"]
    state = TrainState(step=jnp.array(0), key=key, params=params, collections={}, opt_state=())

    def loss(params):
        total, weight, _, metrics = task.loss(model, params, state, batch, key)
        return total / weight, metrics

    gradients, metrics = jax.grad(loss, has_aux=True)(params)
    kernel, bias = (np.asarray(params["logits"][name]) for name in ("kernel", "bias"))
    flat, labels = arrays["image"].reshape(12, 2, 4), arrays["label"][:4]
    weak, strong = (scipy.special.log_softmax(flat[:11, i] @ kernel + bias, 1) for i in (0, 1))
    sure, targets = np.exp(weak).max(1) >= 0.6, weak.argmax(1)
    assert 0 < sure.sum() < 11
    supervised = -weak[range(4), labels].mean()
    consistency = -(strong[range(11), targets] * sure).sum() / 11
    assert metrics["loss"].compute() == pytest.approx(supervised + 2 * consistency, rel=1e-5)
    assert metrics["confident"].compute() == pytest.approx(sure.mean())
    assert metrics["accuracy"].count == 4
    # No gradient flows through the predicted classes.
    expected = flat[:4, 0].T @ (np.exp(weak[:4]) - np.eye(3)[labels]) / 4
    expected += 2 * flat[:11, 1].T @ (sure[:, None] * (np.exp(strong) - np.eye(3)[targets])) / 11
    np.testing.assert_allclose(gradients["logits"]["kernel"], expected, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Adds noise to an image, of a key of its own."""

    scale: float

    def __call__(self, batch, keys):
        if keys is None:
            return batch
        x = batch["image"]
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return {**batch, "image": x + self.scale * noise}


def make(**changes):
    label = np.arange(40) % 2
    noise = np.random.default_rng(1).normal(size=(40, 5))
    image = (3 * label[:, None] + noise).astype(np.float32)
    few = Arrays(
        {
            "train": {"image": image[:4], "label": label[:4]},
            "test": {"image": image, "label": label},
        },
        validation_fraction=0.0,
    )
    many = Arrays({"train": {"image": image}}, test_fraction=0.0, validation_fraction=0.0)
    data = Mixture(
        (Stream("labeled", few), Stream("unlabeled", many, weight=3)),
        device_transforms=(Scale(divisor=3.0), Views(2), Noise(0.05), OnViews(Noise(0.5))),
    )
    fields = {
        "model": MLP((8,), 2), "task": FixMatch(confidence=0.7), "data": data,
        "optimizer": SGD(0.3, momentum=0.9, ema_decay=0.9), "strategy": Single(), "hooks": (),
        "steps": 12, "batch_size": 16,
    }  # fmt: skip
    return Experiment(**{**fields, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    experiment = make(hooks=(Checkpoint(every=5),))
    return jdl.train(experiment, tmp_path_factory.mktemp("fixmatch") / "whole")


def test_two_streams_resume_bit_equal(whole, tmp_path):
    assert whole.evaluate("test")["accuracy"] > 0.9
    jdl.train(make(hooks=(Checkpoint(every=5),), steps=7), tmp_path / "broken")
    again = jdl.train(make(hooks=(Checkpoint(every=5),)), tmp_path / "broken")
    assert again.result["params_sha256"] == whole.result["params_sha256"]


def test_devices_and_microbatches_give_the_same_result(whole):
    other = jdl.train(make(strategy=Pmap(2), num_microbatches=2))
    for name, value in whole.evaluate("test").items():
        assert other.evaluate("test")[name] == pytest.approx(value, rel=1e-4)


def test_what_it_refuses():
    with pytest.raises(UserError, match=r"task.confidence is a probability in \[0, 1\), not 1.0"):
        FixMatch(confidence=1.0)
    with pytest.raises(UserError, match=r"task\.labeled is None"):
        FixMatch(labeled=None)
    data = dataclasses.replace(make().data, device_transforms=(Scale(),))
    with pytest.raises(UserError, match=r"two views of each example, where 'image' has shape \(5,"):
        jdl.train(make(data=data))
