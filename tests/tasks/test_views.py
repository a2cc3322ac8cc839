"""Views of images: evaluation and prediction average over them, training does not change."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.tasks import MIRROR, MIRROR_AND_SHIFT, Classification, Regression, View

X = np.random.default_rng(0).normal(size=(20, 4, 5, 2)).astype(np.float32)


def view(x, mirror, down=0, right=0):
    x = x[:, :, ::-1] if mirror else x
    wide = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), "reflect")
    return wide[:, 3 - down : 7 - down, 3 - right : 8 - right]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (-1, -1), (2, -3), (0, 1)])
def test_a_view_is_numpys(mirror, shift):
    batch = {"image": jnp.asarray(X), "label": jnp.arange(20)}
    found = View(mirror=mirror, shift=shift)(batch)
    np.testing.assert_array_equal(found["image"], view(X, mirror, *shift))
    np.testing.assert_array_equal(found["label"], batch["label"])


def make(views=(), task=Classification):
    y = np.arange(20) % 3 if task is Classification else X[:, 0, 0, 0]
    data = Arrays(
        {"train": {"image": X, "label": y}, "test": {"image": X[:7], "label": y[:7]}},
        validation_fraction=0.0,
    )
    outputs = 3 if task is Classification else 1
    return jdl.Experiment(
        MLP((8,), outputs), task=task(views=views), data=data, optimizer=SGD(0.02),
        strategy=Single(), hooks=(), steps=12, batch_size=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return jdl.train(make())


def logits(run, x):
    """Those of the run's model, up to a constant."""
    return np.log(run.predict(x))


def test_evaluation_averages_the_logits_of_the_views(plain, tmp_path):
    weights = {(False, 0): 2, (True, 0): 2, **{(m, s): 1 for m in (False, True) for s in (1, -1)}}
    expected = {
        MIRROR: (logits(plain, X) + logits(plain, X[:, :, ::-1])) / 2,
        MIRROR_AND_SHIFT: sum(
            weight / 8 * logits(plain, view(X, mirror, shift, shift))
            for (mirror, shift), weight in weights.items()
        ),
    }
    assert not np.allclose(expected[MIRROR], logits(plain, X), atol=1e-2)
    for views, mean in expected.items():
        run = jdl.train(make(views), tmp_path / str(len(views)))
        # Training is the same, bit by bit.
        assert run.result["params_sha256"] == plain.result["params_sha256"]
        assert run.history["train"] == plain.history["train"]
        shares = scipy.special.softmax(mean, axis=1)
        np.testing.assert_allclose(run.predict(X), shares, rtol=1e-4, atol=1e-6)
        nll = -np.log(shares[range(7), np.arange(7) % 3]).mean()
        assert run.evaluate("test")["nll"] == pytest.approx(nll, rel=1e-4)
        again = jdl.open(tmp_path / str(len(views)))
        assert again.experiment.task.views == views
        np.testing.assert_array_equal(again.predict(X), run.predict(X))


def test_other_tasks_average_too():
    views = (View(), View(mirror=True, weight=3.0))
    run, plain = jdl.train(make(views, Regression)), jdl.train(make(task=Regression))
    expected = 0.25 * plain.predict(X) + 0.75 * plain.predict(X[:, :, ::-1])
    np.testing.assert_allclose(run.predict(X), expected, rtol=1e-4, atol=1e-6)


def test_views_are_refused_where_they_have_no_effect():
    class Own(Classification):
        def predict(self, model, state, batch):
            return jnp.zeros(len(batch["mask"]))

    with pytest.raises(UserError, match=r"no effect on Own, which defines its own predict"):
        Own(views=MIRROR)
    with pytest.raises(UserError, match="which has sown_losses"):
        Classification(views=MIRROR, sown_losses=("losses",))
    with pytest.raises(UserError, match="weight of a view is finite and above 0, not 0"):
        View(weight=0.0)
