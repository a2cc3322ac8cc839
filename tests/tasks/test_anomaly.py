"""Anomaly detection learns from normal rows alone, and from few labeled anomalies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import jdl
from jdl import Experiment
from jdl.data import Table
from jdl.errors import UserError
from jdl.metrics import AUPRC
from jdl.models import MLP
from jdl.optimizers import Adam
from jdl.report.run_baselines import baselines_of
from jdl.state import TrainState
from jdl.tasks import AnomalyDetection, with_row_keys


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Normal rows on a diagonal, anomalies on the other, where no column alone tells them apart."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("rows") / "rows.csv"
    x = rng.normal(size=(1620, 1)) * [1, 1] + rng.normal(0, 0.1, (1620, 2))
    rows = [f"{a:.4f},{b:.4f},normal" for a, b in x[:1500]]
    rows += [f"{a:.4f},{-b:.4f},odd" for a, b in x[1500:]]
    path.write_text("\n".join(["a,b,state", *rng.permutation(rows)]) + "\n")
    return Table(str(path), "state", train_limits=(("odd", 0),), validation_fraction=0.0)


def experiment(table, **task):
    return Experiment(
        model=MLP(widths=(32, 32), features=1),
        task=AnomalyDetection(metrics=(AUPRC(),), noise=(0.1, 2.0), **task),
        data=table,
        optimizer=Adam(1e-2),
        steps=200,
        batch_size=64,
        hooks=(),
    )


def test_anomalies_are_found_from_normal_rows(table, tmp_path):
    splits = table.splits()
    assert table.output_names() == ("normal", "odd")
    assert not any(splits["train"][i]["y"] for i in range(len(splits["train"])))
    run = jdl.train(experiment(table), tmp_path / "run")
    test = [splits["test"][i] for i in range(len(splits["test"]))]
    scores = run.predict({"x": np.stack([row["x"] for row in test])})
    found = average_precision_score([row["y"] for row in test], scores)
    assert found > 0.6  # of 0.07 by chance
    assert [row.name for row in baselines_of(run)] == ["isolation forest", "best column alone"]
    assert run.evaluate("test")["auprc"] == pytest.approx(found)


def test_few_labeled_anomalies_count(table):
    few = jdl.override(experiment(table), {"data.train_limits": (("odd", 5),)}).data.splits()
    assert sum(few["train"][i]["y"] for i in range(len(few["train"]))) == 5
    task, rows = AnomalyDetection(anomaly_weight=3.0), 8
    batch = {
        "x": np.zeros((rows, 2), np.float32),
        "y": np.array([0] * 6 + [1] * 2),
        "mask": np.array([1] * 7 + [0], bool),
    }
    model = MLP(widths=(), features=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    batch = with_row_keys(jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), params, {}, ())
    found = task.batch_metrics(model, params, state, batch, train=True, key=jax.random.key(1))
    assert found[0]["loss"].count == 6 + 3 + 6  # the anomaly by its weight, copies of normal rows


def test_limits_leave_the_scale_to_the_rows_that_are_kept(table):
    splits = table.splits()
    x = np.stack([splits["train"][i]["x"] for i in range(len(splits["train"]))])
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    again = table.with_fitted(table.fit()).splits()
    np.testing.assert_array_equal(again["train"][0]["x"], splits["train"][0]["x"])


def test_noise_is_in_some_columns_of_every_copy():
    task = AnomalyDetection(share=0.3, noise=(0.5, 0.5))
    batch = {"x": jnp.zeros((500, 10)), "mask": jnp.ones(500, bool)}
    found = np.asarray(task.corrupt(with_row_keys(batch, jax.random.key(0))))
    assert (found != 0).any(1).all()
    assert (found != 0).mean() == pytest.approx(0.3 + 0.07, abs=0.03)
    assert found[found != 0].std() == pytest.approx(0.5, abs=0.02)


def test_impossible_settings_are_refused(table):
    with pytest.raises(UserError, match=r"task\.noise needs two"):
        AnomalyDetection(noise=(2.0, 1.0))
    for limits, message in (
        ((("strange", 0),), "names 'strange', which is no class of column 'state'"),
        ((("odd", 0), ("normal", 0)), "leaves no training row"),
    ):
        with pytest.raises(UserError, match=message):
            jdl.override(experiment(table), {"data.train_limits": limits}).data.splits()
