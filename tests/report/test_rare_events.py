"""Rare events in a table: split by time, with logistic regression and boosting beside the run."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

import jdl
from jdl.cli.main import main
from jdl.config.experiment_file import available
from jdl.data.sources import read_array
from jdl.report.run_baselines import baselines_of


@pytest.fixture
def payments(tmp_path, monkeypatch):
    """2,000 payments in the layout of the set, 3 % of them fraudulent; returns their table."""
    rng = np.random.default_rng(0)
    fraud = rng.random(2000) < 0.03
    hidden = rng.normal(size=(2000, 28)) + 1.2 * fraud[:, None] * (np.arange(28) < 4)
    amount = rng.gamma(1.0, 80.0, 2000)
    times = np.sort(rng.integers(0, 172_800, 2000))
    names = ["Time", *(f"V{i}" for i in range(1, 29)), "Amount", "Class"]
    lines = [",".join(f'"{name}"' for name in names)]
    for time, row, paid, label in zip(times, hidden, amount, fraud, strict=True):
        lines.append(f'{time},{",".join(f"{x:.6f}" for x in row)},{paid:.2f},"{int(label)}"')
    raw = tmp_path / "creditcard.csv"
    raw.write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "..")
    main(["prepare", "credit_card_fraud", "--from", str(raw)])
    return np.column_stack([hidden, amount]), fraud


def test_credit_card_fraud_is_split_by_time_beside_its_baselines(payments, tmp_path):
    x, fraud = payments
    experiment = jdl.load(available()["credit_card_fraud"]).experiment
    run = jdl.train(
        jdl.override(experiment, {"epochs": 1, "hooks": (), "final_train_evaluation": False}),
        workdir=tmp_path / "run",
    )
    splits = experiment.data.splits()
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 1440, "validation": 160, "test": 400
    }  # fmt: skip
    for name, rows in zip(
        ("train", "validation", "test"), np.split(fraud, [1440, 1600]), strict=True
    ):
        np.testing.assert_array_equal(read_array(splits[name], "y"), rows)
    beside = baselines_of(run)
    assert {row.metric for row in beside} == {"auprc"}
    found = {row.name: row.value for row in beside}
    scaler = StandardScaler().fit(x[:1440])
    train, test = scaler.transform(x[:1440]), scaler.transform(x[1600:])
    expected = {"constant score": fraud[1600:].mean()}
    for name, model in (
        ("logistic regression", LogisticRegression(max_iter=1000)),
        ("gradient boosting", HistGradientBoostingClassifier(random_state=0)),
    ):
        scores = model.fit(train, fraud[:1440]).predict_proba(test)[:, 1]
        expected[name] = average_precision_score(fraud[1600:], scores)
    assert found == pytest.approx(expected, abs=0.02)
    assert found["logistic regression"] > 5 * found["constant score"]
    assert 0 < run.evaluate("test")["auprc"] <= 1
