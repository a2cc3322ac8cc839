"""Metrics of whole splits equal scikit-learn's, however examples are split and padded."""

from dataclasses import dataclass
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from jdl.errors import UserError
from jdl.metrics import (
    AUPRC,
    AUROC,
    CalibrationError,
    ConfusionMatrix,
    DiceScore,
    MacroF1,
    Mean,
    MeanIoU,
    Metric,
    Packed,
    RecallAtPrecision,
    Rows,
    SensitivityAtSpecificity,
    TopKAccuracy,
    compute,
    merge,
    scalars,
)
from jdl.metrics.metric import check_metrics, check_size

ALL = (
    AUPRC(),
    AUROC(),
    CalibrationError(),
    ConfusionMatrix(),
    MacroF1(),
    MeanIoU(),
    TopKAccuracy(k=2),
)


def in_batches(metrics, prediction, targets, size=7):
    """The values of metrics, of batches of which the last is padded with rows of nonsense."""
    parts = []
    for begin in range(0, len(targets), size):
        rows = np.arange(begin, begin + size)
        mask = rows < len(targets)
        index = np.where(mask, rows, 0)
        each = jnp.asarray(prediction[index]), jnp.asarray(targets[index]), jnp.asarray(mask)
        parts.append({metric.name: metric.of(*each) for metric in metrics})
    return compute(merge(parts))


def calibration(right, confidence, bins):
    """The expected calibration error by scikit-learn's curve."""
    share, mean = calibration_curve(right, confidence, n_bins=bins)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    counts = np.bincount(np.searchsorted(edges, confidence), minlength=bins)
    return np.abs(share - mean) @ counts[counts > 0] / len(right)


@st.composite
def problems(draw):
    """Probabilities of some classes, with ties, and targets; some classes may never occur."""
    rows, classes = draw(st.integers(2, 30)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([3, 10, 1000]))
    raw = rng.integers(1, levels, (rows, classes)).astype(np.float32)
    targets = rng.integers(0, draw(st.integers(1, classes)), rows, np.int32)
    return raw / raw.sum(1, keepdims=True), targets


@settings(deadline=None, max_examples=40)
@given(problems())
def test_metrics_of_several_classes_are_scikit_learns(problem):
    prediction, targets = problem
    found = in_batches(ALL, prediction, targets)
    classes, chosen = range(prediction.shape[1]), prediction.argmax(1)
    np.testing.assert_array_equal(
        found["confusion_matrix"], sk.confusion_matrix(targets, chosen, labels=classes)
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, chosen, average="macro"))
    iou = sk.jaccard_score(targets, chosen, average="macro")
    assert found["mean_iou"] == pytest.approx(iou)
    right, confidence = chosen == targets, prediction.max(1)
    expected = calibration(right, confidence.astype(np.float64), 15)
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)
    ranks = np.argsort(prediction, 1, kind="mergesort")[:, ::-1]  # as top_k_accuracy_score does
    assert found["top_2_accuracy"] == pytest.approx(np.mean((targets == ranks[:, :2].T).any(0)))
    if len(classes) > 2:
        expected = sk.top_k_accuracy_score(targets, prediction, k=2, labels=classes)
        assert found["top_2_accuracy"] == pytest.approx(expected)
    if len(set(targets)) == len(classes) == 2:
        roc, prc = (f(targets, prediction[:, 1]) for f in CURVES)
    elif len(set(targets)) == len(classes):
        roc = sk.roc_auc_score(targets, prediction, multi_class="ovr", labels=classes)
        prc = sk.average_precision_score(targets, prediction)
    else:
        roc = prc = np.nan
    assert (found["auroc"], found["auprc"]) == pytest.approx((roc, prc), nan_ok=True)


CURVES = sk.roc_auc_score, sk.average_precision_score


@settings(deadline=None, max_examples=20)
@given(problems())
def test_metrics_of_two_classes_from_one_probability(problem):
    prediction, targets = problem[0][:, 0], problem[1] % 2
    found = in_batches((*ALL[:6],), prediction, targets)
    chosen = prediction > 0.5
    matrix = sk.confusion_matrix(targets, chosen, labels=[0, 1])
    np.testing.assert_array_equal(found["confusion_matrix"], matrix)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, chosen, average="macro"))
    expected = calibration(targets, prediction.astype(np.float64), 15)
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)
    both = 0 < targets.sum() < len(targets)
    expected = [f(targets, prediction) if both else np.nan for f in CURVES]
    assert [found["auroc"], found["auprc"]] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("ignored", [255, -1, 0, None])
def test_mean_iou_of_pictures_leaves_the_ignored_class_out(ignored):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 4, 5, 3)).astype(np.float32)
    targets = rng.integers(0, 3, (9, 4, 5)).astype(np.int32)
    if ignored not in (0, None):
        targets[rng.random(targets.shape) < 0.3] = ignored
    kept = targets != ignored if ignored is not None else np.ones(targets.shape, bool)
    labels = [label for label in range(3) if label != ignored]
    pair = targets[kept], scores.argmax(-1)[kept]
    expected = sk.jaccard_score(*pair, labels=labels, average="macro")
    found = in_batches((MeanIoU(ignored_class=ignored),), scores, targets, size=4)
    assert found == {"mean_iou": pytest.approx(expected)}


@pytest.mark.parametrize(("classes", "ignored"), [((), 255), ((1,), None), ((1, 2), 0)])
def test_dice_of_pictures_is_a_mean_over_images_and_classes(classes, ignored):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 4, 5, 3)).astype(np.float32)
    scores[3, ..., 2] = -9  # a class that one image lacks
    targets = rng.integers(0, 3, (9, 4, 5)).astype(np.int32)
    targets[3][targets[3] == 2] = 0
    targets[rng.random(targets.shape) < 0.2] = 255 if ignored == 255 else 0
    labels, each = [c for c in classes or range(3) if c != ignored], []
    for target, found in zip(targets, scores.argmax(-1), strict=True):
        kept = target != (-1 if ignored is None else ignored)
        known = [c for c in labels if (target[kept] == c).any() or (found[kept] == c).any()]
        each += sk.f1_score(target[kept], found[kept], labels=known, average=None).tolist()
    metric = DiceScore(classes=classes, ignored_class=ignored)
    assert in_batches((metric,), scores, targets, size=4) == {
        "dice_score": pytest.approx(np.mean(each))
    }
    absent = DiceScore(classes=(2,), ignored_class=ignored)
    assert in_batches((absent,), scores[3:4], targets[3:4]) == {"dice_score": 0}
    with pytest.raises(UserError, match=r"dice_score: .* targets are no class.* ignored_class"):
        in_batches((DiceScore(),), scores, np.full_like(targets, 7))


@pytest.mark.parametrize("specificity", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("levels", [4, 1000])
def test_sensitivity_is_the_best_of_all_thresholds(specificity, levels):
    rng = np.random.default_rng(levels)
    targets = rng.integers(0, 2, 90, np.int32)
    share = ((rng.integers(0, levels, 90) + targets * levels / 4) / levels / 2).astype(np.float32)
    best = max(
        sk.recall_score(targets, share >= threshold)
        for threshold in (*share, 2)
        if sk.recall_score(targets, share >= threshold, pos_label=0) >= specificity - 1e-9
    )
    metric = SensitivityAtSpecificity(specificity=specificity)
    for prediction in (share, np.stack([1 - share, share], 1)):
        found = in_batches((metric,), prediction, targets)
        assert found == {"sensitivity_at_specificity": pytest.approx(best)}
    assert np.isnan(in_batches((metric,), share, targets * 0)["sensitivity_at_specificity"])
    with pytest.raises(UserError, match="needs two classes, not 3: use AUROC"):
        in_batches((metric,), np.ones((4, 3), np.float32), np.arange(4) % 3)
    with pytest.raises(UserError, match=r"specificity in \[0, 1\], not 95"):
        SensitivityAtSpecificity(specificity=95)


def test_confidence_at_the_edge_of_a_bin_falls_where_scikit_learn_puts_it():
    for bins in (1, 5, 10, 15):
        edges = np.linspace(0, 1, bins + 1).astype(np.float32)
        near = np.concatenate([np.nextafter(edges, np.float32(s)) for s in (-1, 2)])
        confidence = np.clip(np.concatenate([edges, near]), 0, 1)
        targets = np.arange(len(confidence)) % 2
        found = in_batches((CalibrationError(num_bins=bins),), confidence, targets)
        expected = calibration(targets, confidence.astype(np.float64), bins)
        assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [ConfusionMatrix(), MacroF1(), MeanIoU(), TopKAccuracy(k=1)])
def test_targets_that_are_no_class_are_counted_out_loud(metric):
    prediction = np.full((5, 3), 1 / 3, np.float32)
    for wrong in (3, -1, 255):
        with pytest.raises(UserError, match=f"{metric.name}: 2 targets are no class"):
            in_batches((metric,), prediction, np.array([0, wrong, 1, 2, wrong], np.int32))
    with pytest.raises(UserError, match="integer targets, not float32"):
        in_batches((metric,), prediction, np.zeros(5, np.float32))


def test_predictions_of_another_shape_are_refused():
    mask = jnp.ones(4, bool)
    with pytest.raises(UserError, match=r"shape \(4, 2, 3\) are no probabilities"):
        MacroF1().of(jnp.zeros((4, 2, 3)), jnp.zeros(4, jnp.int32), mask)
    with pytest.raises(UserError, match=r"probabilities \(batch, classes\): of two classes"):
        TopKAccuracy().of(jnp.zeros(4), jnp.zeros(4, jnp.int32), mask)
    with pytest.raises(UserError, match=r"auroc needs .* not \(3, 2, 2\) with \(3,\)"):
        in_batches((AUROC(),), np.zeros((3, 2, 2)), np.zeros(3, np.int32))
    with pytest.raises(UserError, match=r"targets \(batch, ...\) of 4 rows, not of shape \(5,\)"):
        MacroF1().of(jnp.zeros((4, 2)), jnp.zeros(5, jnp.int32), mask)


def test_settings_that_mean_nothing_and_lists_that_are_no_metrics():
    with pytest.raises(UserError, match="k >= 1"):
        TopKAccuracy(k=0)
    with pytest.raises(UserError, match="num_bins >= 1"):
        CalibrationError(num_bins=0)
    with pytest.raises(UserError, match=r"two metrics named 'top_5_accuracy'"):
        check_metrics((TopKAccuracy(), TopKAccuracy(k=1), TopKAccuracy()))
    for wrong, hint in ((MacroF1, r"MacroF1\(\)"), ("f1", r"MacroF1\(\)"), (AUROC, r"AUROC\(\)")):
        with pytest.raises(UserError, match=f"such as {hint}"):
            check_metrics((wrong,))  # pyright: ignore[reportArgumentType]


def test_rows_beyond_the_limit_are_refused_with_their_size():
    metric = AUROC(max_bytes=1 << 20)
    shapes = jax.eval_shape(
        lambda: {"auroc": metric.of(jnp.zeros((8, 1000)), jnp.zeros(8, jnp.int32), jnp.ones(8))}
    )
    check_size(shapes, 261, 8, "test")  # 4,004 bytes each
    with pytest.raises(
        UserError, match=r"'auroc' of split 'test' .* 4,296,292,000 bytes .* 1,048,576"
    ):
        check_size(shapes, 10**6 + 73 * 10**3, 8, "test")


@dataclass(frozen=True, kw_only=True)
class Errors(Metric):
    """Number of errors: 0 is a value, where nothing was seen is none."""

    higher_is_better: ClassVar[bool | None] = False

    def statistics(self, prediction, targets, mask):
        return ((prediction.argmax(-1) != targets) & mask).sum()

    def compute(self, statistics):
        return statistics


def test_a_sum_of_zero_is_a_value_and_no_example_is_none():
    perfect = in_batches((Errors(),), np.eye(3, dtype=np.float32), np.arange(3))
    assert perfect == {"errors": 0.0}
    assert isinstance(perfect["errors"], float)
    part = {"errors": Errors().of(jnp.eye(3), jnp.arange(3), jnp.zeros(3, bool))}
    assert compute(merge([part])) == {}


@flax.struct.dataclass
class PerClass:
    """A metric without a base class: accuracy per class."""

    right: jax.Array
    all: jax.Array

    def compute(self):
        return self.right / self.all


@flax.struct.dataclass
class ClusPrecision:
    """In the protocol of clu and metrax."""

    true_positives: jax.Array
    false_positives: jax.Array

    def merge(self, other):
        return type(self)(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
        )

    def compute(self):
        total = self.true_positives + self.false_positives
        return jnp.where(total != 0, self.true_positives / total, 0.0)


@flax.struct.dataclass
class ClusLast(ClusPrecision):
    """A metric of the last batch, which no sum gives."""

    def merge(self, other):
        return other


def test_metrics_of_any_shape_are_packed_and_unpacked():
    metrics = {
        "a": PerClass(jnp.array([1, 2, 3]), jnp.array([4, 4, 4])),
        "b": Mean(jnp.float32(3), jnp.float32(4)),
        "c": ClusPrecision(jnp.float32(1), jnp.float32(3)),
        "d": ConfusionMatrix().of(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2, bool)),
    }
    packed = jax.jit(Packed.of)(metrics)
    assert packed.values.shape == (3 + 3 + 2 + 2 + 4 + 1 + 1,)
    (found,) = packed.unpack()
    assert isinstance(found["b"].total, float)
    many = Packed(jnp.stack([packed.values] * 2), packed.structure, packed.shapes)
    values = compute(merge(many.unpack()))
    np.testing.assert_array_equal(values["a"], [0.25, 0.5, 0.75])
    assert scalars(values) == {"b": 0.75, "c": 0.25}
    np.testing.assert_array_equal(values["d"], [[2, 2], [0, 0]])


def test_a_metric_that_does_not_add_is_refused_while_tracing():
    one = jnp.ones(())
    with pytest.raises(UserError, match=r"'last' \(.*ClusLast\) does not merge by adding"):
        jax.jit(Packed.of)({"last": ClusLast(one, one)})
    with pytest.raises(UserError, match=r"'plain' is a .*: return a Mean"):
        jax.jit(lambda x: Packed.of({"plain": x}))(one)
    with pytest.raises(UserError, match="'rows' collects rows, which training cannot"):
        Packed.of({"rows": Rows(one, one, AUROC())})
    with pytest.raises(UserError, match="'words' computes 'many': return a number"):
        compute({"words": type("Words", (), {"compute": lambda self: "many"})()})


def test_recall_at_precision_is_that_of_all_thresholds():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 200)
    score = (0.5 * target + rng.random(200)).round(1)  # with ties
    wanted = 0.0
    for threshold in np.unique(score):
        found = score >= threshold
        if target[found].mean() >= 0.8 - 1e-9:
            wanted = max(wanted, target[found].sum() / target.sum())
    rows = {"prediction": score, "targets": target}
    assert RecallAtPrecision(precision=0.8).compute(rows) == pytest.approx(wanted)
    assert RecallAtPrecision(precision=1.0).compute({"prediction": -score, "targets": target}) == 0
    with pytest.raises(UserError, match=r"a precision in \[0, 1\]"):
        RecallAtPrecision(precision=80)
