"""Ranking against a direct computation; models that learn whom to recommend what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Interactions
from jdl.errors import UserError
from jdl.metrics import compute
from jdl.models import MatrixFactorization, NeuMF, SASRec
from jdl.optimizers import Adam
from jdl.report import ranking
from jdl.report.run_baselines import baselines_of
from jdl.state import TrainState
from jdl.tasks import NextItem, with_row_keys


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Users of two tastes: each goes through the even or the odd items."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("choices") / "choices.csv"
    lines = []
    for user in range(40):
        items = 2 * rng.permutation(20)[:12] + user % 2
        lines += [f"u{user:02},i{item:02},{at}" for at, item in enumerate(items)]
    path.write_text("\n".join(["user,item,time", *lines]) + "\n")
    return Interactions(str(path), length=8, num_negatives=12, validation_fraction=0.0)


def stacked(source):
    rows = [source[index] for index in range(len(source))]
    return {name: jnp.array([row[name] for row in rows]) for name in rows[0]}


def state(params):
    return TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), params, {}, ())


class Given(nn.Module):
    """Scores that are its parameters."""

    @nn.compact
    def __call__(self, user, history, train=False):
        return self.param("scores", nn.initializers.zeros, (40, 41))


def test_metrics_of_ranking_are_those_of_a_direct_computation(data):
    rng, rows = np.random.default_rng(1), stacked(data.splits()["test"])
    task, mask = NextItem(k=5), jnp.arange(40) % 7 > 0
    batch = {**rows, "mask": mask}
    kept = [np.asarray(rows[name])[mask] for name in ("item", "seen", "negatives")]
    equal = rng.integers(0, 6, (40, 41)).astype(np.float32)  # many of them
    for scores in (equal, equal + rng.random(equal.shape, np.float32) / 2):
        params = {"scores": jnp.array(scores)}
        metrics, _ = task.batch_metrics(Given(), params, state(params), batch, train=False)
        found, wanted = compute(metrics), ranking.rank_metrics(scores[mask], *kept, 5)
        for name in ("hit_rate", "ndcg", "mrr", "sampled_hit_rate", "sampled_ndcg"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)
    assert found["catalog_coverage"] == pytest.approx(wanted["catalog_coverage"])
    best = np.asarray(task.to_prediction(params["scores"], batch))
    assert not np.take_along_axis(np.asarray(rows["seen"]), best, 1).any()
    assert best.min() > 0


def test_bpr_draws_only_what_the_user_did_not_choose(data):
    rows = {name: array[:40] for name, array in stacked(data.splits()["train"]).items()}
    rows["mask"] = jnp.ones(40, bool)
    # Only what may be drawn has a score of 0, by which the loss is log 2.
    allowed = ~np.asarray(rows["seen"])
    allowed[np.arange(40), np.asarray(rows["item"])] = False
    params = {"scores": jnp.where(allowed, 0.0, 50.0).at[jnp.arange(40), rows["item"]].set(0.0)}
    for seed in range(3):
        batch = with_row_keys(rows, jax.random.key(seed))
        loss, weight, *_ = NextItem(objective="bpr").loss(
            Given(), params, state(params), batch, jax.random.key(0)
        )
        assert float(loss / weight) == pytest.approx(np.log(2))


def test_sasrec_reads_the_order_and_no_padding():
    model = SASRec(num_items=9, embed_dim=8, num_layers=1)
    user, history = jnp.zeros(3, jnp.int32), jnp.array([[0, 0, 1, 2], [0, 0, 2, 1], [0, 0, 0, 0]])
    variables = model.init(jax.random.key(0), user, history)
    scores = model.apply(variables, user, history)
    assert scores.shape == (3, 10)
    assert np.isfinite(scores).all()
    assert not np.allclose(scores[0], scores[1], atol=1e-4)
    changed = jax.tree.map(lambda x: x, variables)
    changed["params"]["items"] = changed["params"]["items"].at[0].add(1.0)
    again = model.apply(changed, user, history)
    np.testing.assert_allclose(again[:2, 1:], scores[:2, 1:], rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (MatrixFactorization(num_users=40, num_items=40, embed_dim=8), "bpr"),
        pytest.param(
            NeuMF(num_users=40, num_items=40, embed_dim=8, widths=(8, 4)),
            "softmax",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SASRec(num_items=40, embed_dim=16, num_layers=1, dropout_rate=0.0),
            "softmax",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["factorization", "neumf", "sasrec"],
)
def test_models_learn_two_tastes(model, objective, data, tmp_path):
    experiment = Experiment(
        model=model,
        task=NextItem(objective=objective, k=8),
        data=data,
        optimizer=Adam(2e-2),
        steps=60,
        batch_size=64,
        hooks=(),
    )
    run = jdl.train(experiment, tmp_path / "run")
    found = run.evaluate("test")
    # Of 29 unseen items 9 are of the user's taste: all of the top 8 by taste, a third by chance.
    assert found["hit_rate"] > 0.6
    assert baselines_of(run)[0].name == "most popular"
    test = stacked(data.splits()["test"])
    first = run.predict({name: test[name][:3] for name in ("user", "history", "seen")})
    assert first.shape == (3, 8)
    rows = ranking.baselines(data, "test", 8)
    assert rows["item-based nearest neighbors"]["hit_rate"] > rows["most popular"]["hit_rate"]


def test_a_model_of_other_items_is_refused(data):
    rows = stacked(data.splits()["test"])
    with pytest.raises(UserError, match=r"scores 30 items, the data has 40: set model.num_items"):
        NextItem().to_prediction(jnp.zeros((40, 31)), rows)
