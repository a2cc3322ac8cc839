"""Segmentation against scikit-learn, with ignored pixels and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

import jdl
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import UNet
from jdl.tasks import Segmentation

ROWS, SIZE, CLASSES = 5, 8, 4
TASK = Segmentation(ignored_class=255)


def example(ignored=255):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, CLASSES - 1, (ROWS, SIZE, SIZE, 1)).astype(np.uint8)
    mask[:, :2] = ignored
    batch = {
        "image": np.zeros((ROWS, SIZE, SIZE, 3), np.uint8),
        "segmentation_mask": mask,
        "mask": np.arange(ROWS) < 4,
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    return batch, jax.random.normal(jax.random.key(0), (ROWS, SIZE, SIZE, CLASSES))


def on_host():
    batch, outputs = example()
    return {name: np.asarray(array) for name, array in batch.items()}, outputs


def scores(task, outputs, batch):
    found = task.loss_and_metrics(outputs, batch)
    return compute({**found, **task.further_metrics(outputs, batch, train=False)})


def test_metrics_equal_scikit_learns():
    batch, outputs = example()
    found = scores(TASK, outputs, batch)
    true = batch["segmentation_mask"][:4, 2:, :, 0].ravel()
    predicted = outputs[:4, 2:].argmax(-1).ravel()
    shares = jax.nn.softmax(outputs[:4, 2:].reshape(-1, CLASSES))
    assert found["loss"] == pytest.approx(sk.log_loss(true, shares, labels=range(CLASSES)), 1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    expected = sk.jaccard_score(true, predicted, average=None, labels=range(CLASSES))
    np.testing.assert_allclose(found["iou"], expected)
    assert found["mean_iou"] == pytest.approx(expected.mean())
    again = scores(TASK, outputs.at[4].set(np.nan).at[:, :2].set(9.0), batch)
    np.testing.assert_equal(again, found)


def test_class_weights_weigh_pixels():
    batch, outputs = example()
    weights = (0.5, 2.0, 1.0, 3.0)
    task = Segmentation(ignored_class=255, class_weights=weights)
    true = batch["segmentation_mask"][:4, 2:, :, 0].ravel()
    nll = -np.log(np.take_along_axis(
        np.asarray(jax.nn.softmax(outputs[:4, 2:].reshape(-1, CLASSES))), true[:, None], 1
    ))[:, 0]  # fmt: skip
    expected = np.average(nll, weights=np.take(weights, true))
    assert scores(task, outputs, batch)["loss"] == pytest.approx(expected, 1e-5)


def test_coarse_logits_are_resized():
    batch, outputs = example()
    coarse = outputs[:, ::2, ::2]
    prediction = TASK.to_prediction(coarse, batch)
    assert prediction.shape == (ROWS, SIZE, SIZE, CLASSES)
    whole = jax.image.resize(coarse, outputs.shape, "bilinear")
    np.testing.assert_allclose(prediction, jax.nn.softmax(whole), atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda m: m[:, :5], r"shape \(5, 8, 1\).*images of 8x8 pixels need"),
        (lambda m: m.astype(np.float32), "shape .* and dtype float32"),
        (
            lambda m: np.where(m == 255, 7, m),
            r"the class 7 at row 0, pixel \(0, 0\), outside 0..3",
        ),
    ],
)
def test_bad_masks_are_refused(mask, message):
    batch, outputs = on_host()
    batch["segmentation_mask"] = mask(batch["segmentation_mask"])
    with pytest.raises(UserError, match=f"split 'train': 'segmentation_mask' has {message}"):
        TASK.validate_batch(batch, outputs, "split 'train'")


def test_what_does_not_fit_segmentation_is_refused():
    batch, outputs = on_host()
    with pytest.raises(UserError, match=r"the class 255 .*or set task.ignored_class"):
        Segmentation().validate_batch(batch, outputs, "x")
    with pytest.raises(UserError, match="needs logits of shape"):
        TASK.validate_batch(batch, outputs[:, 0, 0], "x")
    with pytest.raises(UserError, match="2 weights, the model 4 outputs"):
        Segmentation(ignored_class=255, class_weights=(1.0, 2.0)).validate_batch(
            batch, outputs, "x"
        )
    with pytest.raises(UserError, match="averages outputs of whole images"):
        Segmentation(views=jdl.tasks.MIRROR)
    with pytest.raises(UserError, match="multiples of 8, not 12x16"):
        jax.eval_shape(UNet((4, 4, 4), stride=2).init, jax.random.key(0), np.zeros((1, 12, 16, 3)))


def test_predictions_as_text_name_the_classes():
    shares = np.eye(2)[np.array([[0, 0], [0, 1]])]
    assert TASK.format_prediction(shares, ("sky", "tree")) == {
        "prediction": {"sky": 0.75, "tree": 0.25}
    }
    assert TASK.format_prediction(shares, ()) == {"prediction": {"0": 0.75, "1": 0.25}}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_unet_maps_every_pixel_to_its_features(norm):
    model = UNet((4, 6), features=3, stride=2, norm=norm)
    x = jnp.zeros((2, 16, 12, 3))
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert y.shape == (2, 8, 6, 3)
    assert ("batch_stats" in variables) == (norm == "batch")
