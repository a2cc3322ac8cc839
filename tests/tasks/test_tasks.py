"""Losses and metrics against scikit-learn, and errors for unsuitable data."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    root_mean_squared_error,
)
from sklearn.utils.class_weight import compute_class_weight

from jdl.errors import UserError
from jdl.metrics import Mean, compute
from jdl.models import MLP
from jdl.state import TrainState
from jdl.tasks import (
    BinaryClassification,
    Classification,
    Regression,
    Task,
    balanced_weights,
    forward,
)

KEPT = np.array([True] * 20 + [False] * 4)


class Given(nn.Module):
    """Returns its input, so that a test sets the outputs."""

    def __call__(self, x):
        return x


class Moody(nn.Module):
    """Tells training from evaluation; counts its calls in training in a collection."""

    @nn.compact
    def __call__(self, x, train: bool):
        calls = self.variable("tally", "calls", lambda: jnp.zeros(()))
        if train:
            calls.value += 1
        return x + train


def state(**collections):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, jax.random.key(0), {}, collections, ())


def batch(outputs, targets, mask=None):
    mask = np.ones(len(outputs), bool) if mask is None else mask
    return {"image": jnp.asarray(outputs), "label": jnp.asarray(targets), "mask": jnp.asarray(mask)}


def train(task, example):
    """Loss total, weight and metrics in training; the model's output is the batch's input."""
    total, weight, _, metrics = task.loss(Given(), {}, state(), example, jax.random.key(1))
    return float(total), float(weight), metrics


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32) * 3


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(1).integers(0, 5, 24).astype(np.int32)


def softmax(logits):
    odds = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_classification_scores_are_scikit_learns(logits, labels):
    example = batch(logits, labels, KEPT)
    metrics = Classification().evaluate(Given(), state(), example)
    chances = softmax(logits)
    expected = log_loss(labels[KEPT], chances[KEPT], labels=range(5))
    scores = compute(metrics)
    assert scores["loss"] == pytest.approx(expected, abs=1e-6)
    accuracy = accuracy_score(labels[KEPT], logits[KEPT].argmax(1))
    assert scores["accuracy"] == pytest.approx(accuracy, rel=1e-6)
    total, weight, metrics = train(Classification(), example)
    assert total / weight == pytest.approx(expected, abs=1e-6)
    assert (weight, compute(metrics)) == (20, pytest.approx(scores))
    predicted = Classification().predict(Given(), state(), example)
    np.testing.assert_allclose(predicted, chances, atol=1e-6)


def test_regression_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(2, 24, 3)).astype(np.float32)
    example = batch(outputs, targets, KEPT)
    scores = compute(Regression().evaluate(Given(), state(), example))
    pair = targets[KEPT].ravel(), outputs[KEPT].ravel()
    assert scores["loss"] == pytest.approx(mean_squared_error(*pair), abs=1e-6)
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(*pair), abs=1e-6)
    assert scores["mae"] == pytest.approx(mean_absolute_error(*pair), abs=1e-6)
    total, weight, metrics = train(Regression(), example)
    assert weight == 60
    assert total / weight == pytest.approx(mean_squared_error(*pair), abs=1e-6)
    assert compute(metrics) == pytest.approx(scores)
    np.testing.assert_array_equal(Regression().predict(Given(), state(), example), outputs)


def test_outputs_of_one_column_fit_targets_of_none():
    outputs, targets = np.arange(4.0).reshape(4, 1), np.array([0.0, 1, 2, 5])
    scores = compute(Regression().evaluate(Given(), state(), batch(outputs, targets)))
    assert scores == {"loss": 1.0, "rmse": 1.0, "mae": 0.5}, "no broadcast to 4 x 4"
    assert Regression().predict(Given(), state(), batch(outputs, targets)).shape == (4, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_stable_at_large_logits(smoothing):
    outputs = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], np.float32)
    example = batch(outputs, np.array([1, 1]))
    task = Classification(label_smoothing=smoothing)
    total, _, metrics = train(task, example)
    assert float(metrics["nll"].total) == 4e4
    assert float(metrics["loss"].total) == total
    # Log probabilities are 0, -2e4, -1e4: their mean is -1e4.
    assert total == pytest.approx((1 - smoothing) * 4e4 + smoothing * 2e4, rel=1e-6)
    gradient = jax.grad(
        lambda x: task.loss(Given(), {}, state(), {**example, "image": x}, jax.random.key(0))[0]
    )(example["image"])
    one_hot, uniform = np.eye(3)[[1, 1]], np.full((2, 3), 1 / 3)
    expected = np.array([[1.0, 0, 0]] * 2) - (1 - smoothing) * one_hot - smoothing * uniform
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_label_smoothing_is_szegedys_formula_and_nll_is_without_it(logits, labels):
    share = 0.2
    log_chances = np.log(softmax(logits))
    right = log_chances[np.arange(24), labels]
    expected = -((1 - share) * right + share * log_chances.mean(1))
    task = Classification(label_smoothing=share)
    total, weight, metrics = train(task, batch(logits, labels, KEPT))
    assert total / weight == pytest.approx(expected[KEPT].mean(), rel=1e-5)
    plain = compute(Classification().evaluate(Given(), state(), batch(logits, labels, KEPT)))
    assert plain["nll"] == plain["loss"]
    assert compute(metrics) == pytest.approx({**plain, "loss": total / weight})
    evaluated = task.evaluate(Given(), state(), batch(logits, labels, KEPT))
    assert compute(evaluated) == pytest.approx(compute(metrics))
    for wrong in (-0.1, 1.0):
        with pytest.raises(UserError, match="share in"):
            Classification(label_smoothing=wrong)


def test_class_weights_are_pytorchs_and_nll_is_without_them(logits, labels):
    torch = pytest.importorskip("torch")
    weights = (0.5, 2.0, 0.0, 1.0, 3.0)
    for smoothing in (0.0, 0.1):
        task = Classification(class_weights=weights, label_smoothing=smoothing)
        total, weight, metrics = train(task, batch(logits, labels, KEPT))
        if not smoothing:  # PyTorch weighs the smoothed shares, too
            loss = torch.nn.CrossEntropyLoss(torch.tensor(weights))
            expected = loss(torch.tensor(logits[KEPT]), torch.tensor(labels[KEPT]).long())
            assert total / weight == pytest.approx(float(expected), rel=1e-5)
        assert weight == pytest.approx(np.array(weights)[labels[KEPT]].sum())
        plain = compute(Classification().evaluate(Given(), state(), batch(logits, labels, KEPT)))
        assert compute(metrics) == pytest.approx({**plain, "loss": total / weight})
    right = labels % 2
    task = BinaryClassification(class_weights=(1.0, 3.0))
    total, weight, metrics = train(task, batch(logits[:, :1], right, KEPT))
    each = np.array([1.0, 3.0])[right[KEPT]]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits[KEPT, 0]), torch.tensor(right[KEPT]).float(), reduction="none"
    )
    assert total / weight == pytest.approx((each * loss.numpy()).sum() / each.sum(), rel=1e-5)
    assert metrics["loss"].compute() == total / weight
    assert metrics["nll"].compute() == pytest.approx(loss.numpy().mean(), rel=1e-5)


def test_class_weights_of_mixed_labels_are_mixed(logits, labels):
    shares = np.random.default_rng(0).dirichlet(np.ones(5), 24).astype(np.float32)
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    _, weight, _ = train(Classification(class_weights=tuple(weights)), batch(logits, shares, KEPT))
    assert weight == pytest.approx((shares[KEPT] @ weights).sum(), rel=1e-5)


def test_balanced_weights_are_scikit_learns(labels):
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(balanced_weights(labels), expected)
    with pytest.raises(UserError, match="no example of class 1"):
        balanced_weights(np.array([0, 2]))


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0), (1.0, 2.0, 3.0)])
def test_class_weights_that_mean_nothing(weights):
    with pytest.raises(UserError, match="class_weights"):
        BinaryClassification(class_weights=weights)


def test_the_gradient_field_is_the_gradient_of_the_total(logits, labels):
    model = MLP(widths=(), features=5)
    example = batch(logits, labels, KEPT)
    params = model.init(jax.random.key(0), example["image"])["params"]
    start = dataclasses.replace(state(), params=params)
    gradients, weight, _, metrics = Classification().gradient(
        model, start, example, jax.random.key(0)
    )
    (layer,), (gradient,) = start.params.values(), gradients.values()
    error = softmax(logits @ np.asarray(layer["kernel"]) + layer["bias"]) - np.eye(5)[labels]
    np.testing.assert_allclose(gradient["bias"], error[KEPT].sum(0), atol=1e-5)
    np.testing.assert_allclose(gradient["kernel"], logits[KEPT].T @ error[KEPT], atol=1e-4)
    assert (weight, metrics["loss"].count) == (20, 20)


def test_forward_tells_the_model_the_mode_and_moves_collections_in_training_only():
    tally = {"tally": {"calls": jnp.zeros(())}}
    x = jnp.zeros(2)
    output, changed = forward(Moody(), {}, tally, x, train=True, key=jax.random.key(0))
    assert (output.tolist(), changed["tally"]["calls"]) == ([1, 1], 1)
    output, same = forward(Moody(), {}, changed, x, train=False)
    assert (output.tolist(), same["tally"]["calls"]) == ([0, 0], 1)
    output, _ = forward(Given(), {}, {}, x, train=True, key=jax.random.key(0))
    assert output.tolist() == [0, 0], "a module without the argument train is applied alike"


def test_other_names_of_inputs_and_targets():
    example = {"x": jnp.ones((3, 2)), "y": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool)}
    task = Classification(inputs="x", targets="y")
    assert compute(task.evaluate(Given(), state(), example))["accuracy"] == 1
    task.validate_batch(
        {"x": np.ones((3, 2)), "y": np.zeros(3, int)}, jnp.ones((3, 2)), "split 'train'"
    )


GOOD = {"image": np.ones((4, 2), np.float32), "label": np.array([0, 1, 2, 1])}


@pytest.mark.parametrize(
    ("task", "change", "outputs", "message"),
    [
        (Classification(), {"label": None}, (4, 3), "no array 'label' .it has 'image'."),
        (Regression(inputs="x"), {}, (4, 3), "no array 'x' .it has 'image', 'label'."),
        (Classification(), {"image": np.array([1, 2, np.nan, 4])}, (4, 3), "'image' .* at row 2"),
        (Classification(), {"image": np.array([[1, np.inf]] * 4)}, (4, 3), "'image' .* at row 0"),
        (Regression(), {"label": np.array([1, 2, 3, -np.inf])}, (4,), "'label' .* at row 3"),
        (Classification(), {}, (4,), r"shape \(4,\).*shape \(batch, classes\)"),
        (Classification(), {}, (4, 8, 8, 3), r"shape \(batch, classes\)"),
        (Classification(class_weights=(1.0, 2.0)), {}, (4, 3), "has 2 weights, the model 3"),
        (Classification(), {}, (4, 2), r"label 2 at row 2 is outside 0\.\.1 .*2 outputs"),
        (Classification(), {"label": np.array([0, -1, 0, 0])}, (4, 3), "label -1 at row 1"),
        (Classification(), {"label": np.zeros(4, np.float32)}, (4, 3), "one integer per example"),
        (Classification(), {"label": np.zeros((4, 3), int)}, (4, 3), "one integer per example"),
        (Regression(), {"label": np.zeros(4)}, (4, 2), r"\(2,\) per example.*'label' \(\)"),
        (Regression(), {"label": np.zeros((4, 2))}, (4,), r"\(\) per example.*'label' \(2,\)"),
        (Regression(), {"label": np.zeros((4, 2))}, (4, 3), r"\(3,\) per example"),
    ],
)
def test_data_that_cannot_be_learned_from_is_named(task, change, outputs, message):
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        task.validate_batch(arrays, jax.ShapeDtypeStruct(outputs, jnp.float32), "split 'train'")


@pytest.mark.parametrize(
    ("task", "labels", "outputs"),
    [
        (Classification(), np.array([0, 1, 2, 1], np.uint8), (4, 3)),
        (Regression(), np.zeros(4), (4,)),
        (Regression(), np.zeros(4), (4, 1)),
        (Regression(), np.zeros((4, 2, 3)), (4, 2, 3)),
        (Regression(), np.zeros(4, int), (4, 1)),
    ],
)
def test_data_that_fits_is_taken(task, labels, outputs):
    task.validate_batch(
        {**GOOD, "label": labels}, jax.ShapeDtypeStruct(outputs, jnp.float32), "here"
    )


class Doubled(Classification):
    """Trains on twice the cross-entropy."""

    def loss_and_metrics(self, outputs, batch):
        metrics = super().loss_and_metrics(outputs, batch)
        return {**metrics, "loss": metrics["loss"].replace(total=2 * metrics["loss"].total)}


class Squared(Regression):
    """Trains on twice the squared error."""

    def loss_and_metrics(self, outputs, batch):
        metrics = super().loss_and_metrics(outputs, batch)
        return {**metrics, "loss": metrics["loss"].replace(total=2 * metrics["loss"].total)}


class Focal(Classification):
    """Trains on another loss for each example."""

    def objective(self, outputs, batch):
        chance = jnp.take_along_axis(jax.nn.softmax(outputs), batch["label"][:, None], -1)[:, 0]
        return Mean.of(-jnp.square(1 - chance) * jnp.log(chance), batch["mask"])


class Lossless(Classification):
    """Forgets the loss."""

    def loss_and_metrics(self, outputs, batch):
        return {"nll": super().loss_and_metrics(outputs, batch)["nll"]}


def test_a_subclass_is_trained_on_the_loss_that_it_returns(logits, labels):
    example = batch(logits, labels, KEPT)
    total, weight, metrics = train(Focal(), example)
    chance = softmax(logits)[np.arange(24), labels][KEPT]
    assert total / weight == pytest.approx((-((1 - chance) ** 2) * np.log(chance)).mean(), 1e-5)
    assert metrics["nll"].compute() == pytest.approx(-np.log(chance).mean(), rel=1e-5)
    with pytest.raises(UserError, match=r"Lossless has no metric 'loss'.*\(it has nll\)"):
        train(Lossless(), example)
    for plain, doubled in ((Classification(), Doubled()), (Regression(), Squared())):
        arrays = example if isinstance(plain, Classification) else batch(logits, logits[::-1], KEPT)
        total, weight, _ = train(plain, arrays)
        twice, same, metrics = train(doubled, arrays)
        assert (twice, same) == (2 * total, weight)
        assert float(metrics["loss"].total) == twice


def test_binary_classification_needs_one_logit_per_example(logits, labels):
    for call in (train, lambda task, example: task.predict(Given(), state(), example)):
        with pytest.raises(UserError, match=r"shape \(24, 5\), .* one logit per example"):
            call(BinaryClassification(), batch(logits, labels % 2))


def test_a_task_of_its_own_must_say_what_it_learns():
    with pytest.raises(NotImplementedError):
        Task().loss_and_metrics(jnp.zeros((1, 1)), {})
    example = {"image": jnp.ones((2, 3)), "mask": jnp.ones(2, bool)}
    np.testing.assert_array_equal(Task().predict(Given(), state(), example), np.ones((2, 3)))
