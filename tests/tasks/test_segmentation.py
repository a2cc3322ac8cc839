"""Segmentation against scikit-learn, with ignored pixels and padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

import jdl
from jdl.data import Arrays, Scale
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import UNet
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.report import dense
from jdl.report.page import Folder
from jdl.tasks import CrossEntropy, Dice, Focal, Segmentation, View, sliding_windows

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


def plain():
    """Probabilities and classes of the pixels that count, per image."""
    batch, outputs = example()
    shares = np.asarray(jax.nn.softmax(outputs[:4, 2:]), float).reshape(4, -1, CLASSES)
    return batch, outputs, shares, np.asarray(batch["segmentation_mask"])[:4, 2:].reshape(4, -1)


def test_focal_and_dice_equal_their_formulas():
    batch, outputs, shares, true = plain()
    weights = (0.5, 2.0, 1.0, 3.0)
    own = np.take_along_axis(shares, true[..., None], 2)[..., 0]
    focal = np.average((1 - own) ** 1.5 * -np.log(own), weights=np.take(weights, true))
    rows = []
    for image, label in zip(shares, true, strict=True):
        for c in set(label.tolist()):
            both = image[label == c, c].sum()
            dice = (2 * both + 1) / (image[:, c].sum() + (label == c).sum() + 1)
            rows.append((1 - dice, weights[c]))
    values, counts = np.transpose(rows)
    task = Segmentation(
        ignored_class=255,
        class_weights=weights,
        losses=(Focal(gamma=1.5), Dice()),
        loss_terms=(("focal", 1.0), ("dice", 0.5)),
    )
    found = task.loss_and_metrics(outputs.at[4].set(np.nan), batch)
    assert float(found["focal"].compute()) == pytest.approx(focal, rel=1e-5)
    dice = np.average(values, weights=counts)
    assert float(found["dice"].compute()) == pytest.approx(dice, rel=1e-5)
    assert "loss" not in found  # the weighted sum, which `Task` adds
    one = Segmentation(ignored_class=255, class_weights=weights, losses=(Dice(),))
    assert scores(one, outputs, batch)["loss"] == pytest.approx(dice, rel=1e-5)
    gradient = jax.grad(lambda x: task.loss_and_metrics(x, batch)["focal"].total)
    assert np.isfinite(gradient(100 * outputs)).all()


def test_losses_are_equal_in_parts_of_a_batch(tmp_path):
    """The mean of each term is over the whole batch, whatever rows and classes a part has."""
    task = Segmentation(
        ignored_class=255,
        losses=(CrossEntropy(), Dice()),
        loss_terms=(("cross_entropy", 1.0), ("dice", 0.5)),
        views=jdl.tasks.MIRROR,
    )
    batch, _ = example()
    arrays = {k: np.asarray(v)[:4] for k, v in batch.items() if k != "mask"}
    arrays["image"] = np.random.default_rng(0).integers(0, 255, arrays["image"].shape, np.uint8)

    def train(**changes):
        experiment = jdl.Experiment(
            UNet((4,), features=CLASSES), task=task, optimizer=SGD(0.1), hooks=(),
            data=Arrays({"train": arrays, "test": arrays}, device_transforms=(Scale(),),
                        validation_fraction=0.0),
            strategy=Single(), **{"batch_size": 4, "steps": 2, **changes},
        )  # fmt: skip
        return jdl.train(experiment)

    whole, parts = train(), train(num_microbatches=2)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, whole.params, parts.params)
    found = whole.evaluate("test")
    assert found["loss"] == pytest.approx(found["cross_entropy"] + 0.5 * found["dice"], rel=1e-5)
    (section,) = dense.sections(whole, Folder(tmp_path))
    assert all(part in section for part in ("Scores by class", "IoU", f"{found['iou'][1]:.4f}"))
    other = train(batch_size=3, steps=1).evaluate("test", whole.gather_state())
    np.testing.assert_allclose(other.pop("iou"), found.pop("iou"))
    assert other == pytest.approx(found, rel=1e-5)
    # Views: probabilities of the mean of the logits, the mirror's turned back.
    single = dataclasses.replace(whole.experiment, task=dataclasses.replace(task, views=()))
    single = jdl.train(dataclasses.replace(single, steps=1))
    x, state = arrays["image"], whole.gather_state()
    logits = [np.log(single.predict(each, state=state)) for each in (x, x[:, :, ::-1])]
    mean = jax.nn.softmax((logits[0] + logits[1][:, :, ::-1]) / 2)
    np.testing.assert_allclose(whole.predict(x), mean, atol=1e-5)


def test_sliding_windows_cover_the_image():
    views = sliding_windows((9, 16), (6, 8), 0.5, jdl.tasks.MIRROR)
    assert [view.window for view in views[::2]] == [
        (top, left, 6, 8) for top in (0, 3) for left in (0, 4, 8)
    ]
    assert sliding_windows((9, 16), (9, 16)) == (View(window=(0, 0, 9, 16)),)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 9, 16, 3)).astype(np.float32)
    batch = {"image": jnp.asarray(image)}
    # A network that returns its input: the mean of the windows is the image.
    outputs = jnp.stack([view(batch)["image"] for view in views])
    found = Segmentation(views=views).average_views(outputs, batch)
    np.testing.assert_allclose(found, image, atol=1e-6)
    # One that returns the number of the window: the mean of those that see a pixel.
    numbers = jnp.broadcast_to(jnp.arange(12.0)[:, None, None, None, None], (12, 2, 3, 4, 1))
    found = Segmentation(views=views).average_views(numbers, batch)
    assert float(found[0, 0, 0, 0]) == 0.5  # window 0 and its mirror
    assert float(found[1, 0, 5, 0]) == pytest.approx(np.mean([0, 1, 2, 3]))
    assert float(found[1, 8, 15, 0]) == 10.5
    with pytest.raises(UserError, match=r"leaves out pixel \(0, 8\)"):
        Segmentation(views=views[:2]).average_views(outputs[:2], batch)
    with pytest.raises(UserError, match="reaches beyond images of 9x16"):
        View(window=(5, 0, 6, 8))(batch)
    with pytest.raises(UserError, match="windows within images"):
        sliding_windows((9, 16), (10, 8))


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
    with pytest.raises(UserError, match="averages mirrored and flipped views"):
        Segmentation(views=jdl.tasks.MIRROR_AND_SHIFT)
    with pytest.raises(UserError, match="one output for each pixel, and one class is always"):
        Segmentation().validate_batch(batch, outputs[..., :1], "x")
    nothing = {**batch, "segmentation_mask": np.full_like(batch["segmentation_mask"], 255)}
    with pytest.raises(UserError, match=r"every pixel of .* is of the ignored class 255"):
        TASK.validate_batch(nothing, outputs, "split 'train'")
    with pytest.raises(UserError, match=r"stride of 2 needs images .* not 13x16"):
        jax.eval_shape(UNet((4,), stride=2).init, jax.random.key(0), np.zeros((1, 13, 16, 3)))
    both = (CrossEntropy(), Dice())
    with pytest.raises(UserError, match=r"has several: weigh them, as task\.loss_terms=\(\("):
        Segmentation(losses=both)
    with pytest.raises(UserError, match=r"task\.losses needs losses"):
        Segmentation(losses=())
    with pytest.raises(UserError, match=r"Focal needs gamma >= 0, not -1"):
        Focal(gamma=-1.0)


def test_predictions_as_text_name_the_classes():
    shares = np.eye(2)[np.array([[0, 0], [0, 1]])]
    assert TASK.format_prediction(shares, ("sky", "tree")) == {
        "prediction": {"sky": 0.75, "tree": 0.25}
    }
    assert TASK.format_prediction(shares, ()) == {"prediction": {"0": 0.75, "1": 0.25}}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_unet_maps_every_pixel_to_its_features(norm):
    model = UNet((4, 6), features=3, stride=2, norm=norm)
    x = jnp.zeros((2, 18, 12, 3))  # 9x6 cells, then 5x3
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert y.shape == (2, 9, 6, 3)
    assert ("batch_stats" in variables) == (norm == "batch")
