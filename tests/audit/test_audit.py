"""Audits equal Fairlearn and scikit-learn; intervals and tests hold what they promise."""

import dataclasses
import json
import re

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import jdl
from jdl.audit import audit, audit_predictions
from jdl.audit.rates import features
from jdl.audit.resampling import bootstrap_sums, holm, interval, permutation_p_value
from jdl.errors import UserError
from jdl.tasks import Regression

FAST = {"replicas": 20, "permutations": 99}


def predictions(rows, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    groups = {"sex": rng.choice(["F", "M"], rows), "race": rng.choice(["a", "b", "c"], rows)}
    return labels, p.astype(np.float32), groups


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_equal_fairlearns(classes):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    labels, p, groups = predictions(300, classes)
    found = audit_predictions(labels, p, groups, **FAST)
    assert [each.column for each in found.groupings] == ["sex", "race", "sex, race"]
    for index in [1] if classes == 2 else [0, 3]:
        y, decided = labels == index, p.argmax(1) == index
        oracles = {
            "selection_rate": fairlearn.selection_rate,
            "true_positive_rate": fairlearn.true_positive_rate,
            "false_positive_rate": fairlearn.false_positive_rate,
            "precision": sklearn_metrics.precision_score,
            "base_rate": lambda y_true, y_pred: y_true.mean(),
        }
        for columns, grouping in zip(
            ({"sex": groups["sex"]}, {"race": groups["race"]}, groups), found.groupings, strict=True
        ):
            frame = fairlearn.MetricFrame(
                metrics=oracles, y_true=y, y_pred=decided, sensitive_features=columns
            )
            for name in oracles:
                own = grouping.scores[f"{name}[{index}]"]
                assert len(own) == len(frame.by_group)
                for group, value in frame.by_group[name].items():
                    key = ", ".join(group) if isinstance(group, tuple) else group
                    assert own[key].value == pytest.approx(value, abs=1e-12)
                assert found.overall[f"{name}[{index}]"].value == pytest.approx(
                    frame.overall[name], abs=1e-12
                )
            difference = frame.difference()
            gaps = grouping.gaps
            for gap, name in (
                ("demographic_parity", "selection_rate"),
                ("equal_opportunity", "true_positive_rate"),
                ("predictive_parity", "precision"),
            ):
                own = gaps[f"{gap}[{index}]"].difference.value
                assert own == pytest.approx(difference[name], abs=1e-12)
            odds = fairlearn.equalized_odds_difference(y, decided, sensitive_features=columns)
            own = gaps[f"equalized_odds[{index}]"].difference.value
            assert own == pytest.approx(odds, abs=1e-12)


def test_scores_of_all_classes_equal_scikit_learns():
    labels, p, groups = predictions(1500, 3)
    found = audit_predictions(labels, p, {"sex": groups["sex"]}, **FAST).groupings[0]
    for group in ("F", "M"):
        own = groups["sex"] == group
        accuracy = sklearn_metrics.accuracy_score(labels[own], p[own].argmax(1))
        assert found.scores["accuracy"][group].value == pytest.approx(accuracy, abs=1e-12)
        exact = p[own].astype(float)
        nll = sklearn_metrics.log_loss(labels[own], exact / exact.sum(1, keepdims=True))
        assert found.scores["nll"][group].value == pytest.approx(nll, abs=1e-6)
        confidence, right = p[own].max(1), p[own].argmax(1) == labels[own]
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs((right - confidence)[bins == b].sum()) for b in range(15)]
        assert found.scores["ece"][group].value == pytest.approx(sum(gaps) / own.sum(), abs=1e-6)
        gap = p[own, 2].mean() - (labels[own] == 2).mean()
        assert found.scores["calibration_gap[2]"][group].value == pytest.approx(gap, abs=1e-6)


def test_bootstrap_intervals_are_those_of_the_binomial():
    labels = np.arange(4000) % 2
    p = np.where(np.arange(4000) % 5 < 4, labels, 1 - labels).astype(np.float32)
    rows = features(labels, np.stack([1 - p, p], 1))
    strata = (np.arange(4000) >= 1000).astype(int)
    sums = bootstrap_sums(rows, strata, 2, 3000, seed=0)
    assert (sums[:, :, :2].sum(-1) == [1000, 3000]).all()  # strata keep their sizes
    for stratum, count in enumerate((1000, 3000)):
        right = sums[:, stratum, 4:6].sum(-1) / count
        assert right.std() == pytest.approx(np.sqrt(0.8 * 0.2 / count), rel=0.06)
        low, high = interval(right[:, None], 0.95)
        assert high[0] - low[0] == pytest.approx(3.92 * np.sqrt(0.8 * 0.2 / count), rel=0.1)


def test_permutation_tests_have_their_level_and_find_differences():
    rng = np.random.default_rng(0)
    below = np.array([120, 80, 300])
    p = [permutation_p_value(rng.binomial(below, 0.3), below, 199, seed) for seed in range(300)]
    assert np.mean(np.array(p) <= 0.05) < 0.09
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.1)
    assert permutation_p_value(np.array([12, 40, 90]), below, 999, 0) <= 0.002
    assert np.isnan(permutation_p_value(np.array([3, 0]), np.array([5, 0]), 9, 0))
    # Of two groups, the test is Fisher's with the difference as its statistic.
    few = permutation_p_value(np.array([1, 4]), np.array([5, 5]), 20_000, 0)
    assert few == pytest.approx(52 / 252, abs=0.01)


def test_p_values_are_adjusted_as_holm_did():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_a_run_is_audited_by_columns_kept_and_others(run, command):
    code, out, _ = command("audit", run, "--group", "sex,site", "--replicas", 50)
    assert code == 0
    assert "320 examples of the test split" in out
    assert "worst group by accuracy" in out
    written = json.loads((run / "audit.json").read_text())
    first, second, both = written["groupings"]
    assert (first["column"], second["column"], both["column"]) == ("sex", "site", "sex, site")
    gap = first["gaps"]["demographic_parity[yes]"]
    assert (gap["lowest"], gap["highest"]) == ("F", "M") or gap["difference"]["value"] < 0.2
    assert set(both["counts"]) == {"F, a", "F, b", "M, a", "M, b"}
    assert sum(both["counts"].values()) == 320
    opened = jdl.open(run)
    assert opened.batch["x"].shape[1:] == (1,)  # no group is an input
    labels, p = jdl.audit.report.predict_split(opened, "test")
    assert written["overall"]["accuracy"]["value"] == pytest.approx((p.argmax(1) == labels).mean())
    assert (
        audit(opened, "site", replicas=50).groupings[0].scores["accuracy"]["a"].value
        == (second["scores"]["accuracy"]["a"]["value"])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"needs --group COLUMN\[,COLUMN\]"),
        (["--group", "sx"], r"no column 'sx' \(it has x, sex, site, .*did you mean 'sex'"),
        (["--group", "same"], "the column 'same' is 'c' in all 320 examples"),
        (["--group", "id"], "the column 'id' has 320 values, more than 50"),
        (["--group", "sex", "--min-count", "300"], r"fewer than two groups of 300 examples \(F 1"),
        (["--group", "sex,sex"], "name each group column once"),
        (["--group", "sex", "--split", "tst"], r"no split 'tst'.*did you mean 'test'"),
        (["--group", "sex", "--positive", "ye"], r"no class 'ye'.*did you mean 'yes'"),
    ],
)
def test_a_mistake_is_one_sentence(seeds, command, options, message):
    code, _, said = command("audit", seeds / "seed-0", *options)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert re.search(message, said)


def test_only_classifiers_are_audited(seeds):
    run = jdl.open(seeds / "seed-0")
    run.experiment = dataclasses.replace(run.experiment, task=Regression(inputs="x", targets="y"))
    with pytest.raises(UserError, match="an audit needs Classification"):
        audit(run, "sex")


def test_small_groups_have_counts_alone():
    labels, p, groups = predictions(500, 2)
    rare = np.where(np.arange(500) < 5, "rare", groups["race"])
    found = audit_predictions(labels, p, {"race": rare}, **FAST).groupings[0]
    assert found.small == ("rare",)
    assert found.counts["rare"] == 5
    assert set(found.scores["accuracy"]) == {"a", "b", "c"}
    with pytest.raises(UserError, match="'race' has 500 rows, and there are 400 labels"):
        audit_predictions(labels[:400], p[:400], {"race": rare})


def test_thresholds_make_a_rate_alike_at_the_best_accuracy():
    from jdl.audit.groups import as_column
    from jdl.audit.thresholds import decide, fit_thresholds, rate_gap

    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 4000)
    labels = (rng.normal(size=4000) + group > 0.7).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=4000) * 0.7 + 2 * labels + group - 1.5)))
    column = as_column("g", group)
    for criterion, counted in (
        ("demographic_parity", labels >= 0),
        ("equal_opportunity", labels == 1),
    ):
        fitted = fit_thresholds(labels, scores, column, criterion)
        decided = decide(scores, column, fitted)
        assert rate_gap(labels, decided, column, criterion) < 0.005
        assert rate_gap(labels, scores > 0.5, column, criterion) > 0.1
        best = 0.0
        for rate in np.linspace(0, 1, 101):
            tried = np.zeros(4000, bool)
            for g in (0, 1):
                edge = np.quantile(scores[counted & (group == g)], 1 - rate)
                tried[group == g] = scores[group == g] >= edge
            best = max(best, (tried == labels).mean())
        assert (decided == labels).mean() >= best - 0.002
    with pytest.raises(UserError, match="'2' of 'g' does not occur in the calibration split"):
        decide(scores, as_column("g", group + (labels == 1)), {"0": 0.5, "1": 0.5})


def test_a_command_fits_thresholds(run, command):
    options = ["--group", "sex", "--thresholds", "equal_opportunity", "--replicas", 20]
    code, out, _ = command("audit", run, *options)
    assert code == 0
    assert "groups are not needed at prediction time: no input is one" in out
    assert "they need the group at prediction time" in out
    found = json.loads((run / "audit.json").read_text())["thresholds"]
    assert found["gap"][1] < found["gap"][0]
    assert set(found["thresholds"]) == {"F", "M"}


def test_a_planted_bias_is_found(planted):
    found = audit(planted, "corner", **FAST | {"permutations": 999}).groupings[0]
    gaps = {name: gap for name, gap in found.gaps.items() if name.startswith("demographic")}
    widest = max(gaps, key=lambda name: gaps[name].difference.value)
    assert widest == "demographic_parity[3]"
    assert gaps[widest].highest == "1"
    assert gaps[widest].difference.low > 0.05
    assert gaps[widest].p_value < 0.05
    with pytest.raises(UserError, match=r"data\.calibration_fraction=0\.1"):
        audit(planted, "corner", thresholds="demographic_parity", **FAST)
