"""The update against formulas; invariance to masks, micro-batches and non-finite gradients."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import step as step_lib
from jdl.data import Arrays
from jdl.files import read_rows
from jdl.hooks import Callback, Checkpoint, Evaluate, Hook
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import SGD, Adam, Linear, Partition
from jdl.parallel import Single
from jdl.step import Program
from jdl.tasks import Classification, Regression, Task

LINEAR = MLP(widths=(), features=3)
MASK = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1], bool)
# Compiled once for each program and shape.
update = jax.jit(step_lib.update, static_argnums=0)
evaluate = jax.jit(step_lib.evaluate, static_argnums=0)


def momentum(task, num_microbatches=1):
    """With momentum and decay parameters move even where the gradient is zero."""
    optimizer = SGD(0.3, momentum=0.9, weight_decay=0.1).build(100)
    return Program(MLP((8,), 3, nn.tanh), task, optimizer, num_microbatches=num_microbatches)


WHOLE = {False: momentum(Classification()), True: momentum(Regression())}
SPLIT = {
    (2, False): momentum(Classification(), 2),
    (3, True): momentum(Regression(), 3),
    (4, False): momentum(Classification(), 4),
}


def batch(seed=0, rows=12, mask=None, real=False):
    """Inputs (rows, 5) with classes, or with targets (rows, 3) where `real`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, rows, np.int32)
    return {
        "image": rng.normal(size=(rows, 5)).astype(np.float32),
        "label": rng.normal(size=(rows, 3)).astype(np.float32) if real else label,
        "mask": np.ones(rows, bool) if mask is None else mask,
    }


def start(compute, example, seed=0):
    """A state with random parameters, made without compiling anything."""
    rng = np.random.default_rng(7)
    init = functools.partial(step_lib.init, compute)
    state = jax.eval_shape(init, jax.random.key(0), example)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), state.params)
    collections = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.collections)
    return state.replace(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(seed),
        params=jax.tree.map(jnp.asarray, params),
        collections=jax.tree.map(jnp.asarray, collections),
        opt_state=compute.optimizer.init(params),
    )


def advance(compute, state, *batches):
    """The state after one update on each batch, and the last metrics."""
    metrics = {}
    for one in batches:
        state, metrics = update(compute, state, one)
    return state, metrics


def variables(state):
    """All that an update may change, but the step."""
    return state.params, state.collections, state.opt_state


def linear(state):
    (layer,) = state.params.values()
    return np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)


def test_one_update_is_gradient_descent_on_softmax_regression():
    compute, example = Program(LINEAR, Classification(), SGD(0.5).build(9)), batch(mask=MASK)
    state = start(compute, example)
    weight, bias = linear(state)
    x, y = np.asarray(example["image"][MASK], np.float64), example["label"][MASK]
    odds = np.exp(x @ weight + bias)
    chances = odds / odds.sum(1, keepdims=True)
    error = chances - np.eye(3)[y]
    after, metrics = advance(compute, state, example)
    np.testing.assert_allclose(linear(after)[0], weight - 0.5 * x.T @ error / len(x), atol=1e-6)
    np.testing.assert_allclose(linear(after)[1], bias - 0.5 * error.mean(0), atol=1e-6)
    loss = -np.log(chances[np.arange(len(x)), y])
    np.testing.assert_allclose(metrics["loss"].total, loss.sum(), rtol=1e-6)
    assert metrics["loss"].count == metrics["accuracy"].count == len(x)
    assert metrics["accuracy"].total == (chances.argmax(1) == y).sum()
    assert (metrics["skipped"].total, metrics["skipped"].count, after.step) == (0, 1, 1)


def test_one_update_is_gradient_descent_on_least_squares():
    compute = Program(LINEAR, Regression(), SGD(0.5).build(9))
    example = batch(real=True, mask=MASK)
    state = start(compute, example)
    weight, bias = linear(state)
    x = np.asarray(example["image"][MASK], np.float64)
    error = x @ weight + bias - example["label"][MASK]
    after, metrics = advance(compute, state, example)
    scale = 0.5 * 2 / error.size
    np.testing.assert_allclose(linear(after)[0], weight - scale * x.T @ error, atol=1e-6)
    np.testing.assert_allclose(linear(after)[1], bias - scale * error.sum(0), atol=1e-6)
    loss = metrics["loss"].total / metrics["loss"].count
    np.testing.assert_allclose(loss, (error**2).mean(), rtol=1e-6)


@pytest.mark.parametrize(("num_microbatches", "real"), SPLIT)
def test_micro_batches_equal_one_batch_whatever_their_counts(num_microbatches, real):
    batches = [batch(seed, mask=np.roll(MASK, seed), real=real) for seed in range(4)]
    counts = MASK.reshape(-1, num_microbatches).sum(0)
    assert len(set(counts)) > 1, "equal counts would not tell a mean of means from the mean"
    state = start(WHOLE[real], batches[0])
    one, one_metrics = advance(WHOLE[real], state, *batches)
    many, many_metrics = advance(SPLIT[num_microbatches, real], state, *batches)
    chex.assert_trees_all_close(variables(one), variables(many), atol=1e-6, rtol=1e-6)
    chex.assert_trees_all_close(one_metrics, many_metrics, rtol=2e-6)
    assert many.step == len(batches), "a step is a batch, not a micro-batch"


@pytest.mark.parametrize(("compute", "real"), [(SPLIT[2, False], False), (WHOLE[True], True)])
def test_masked_rows_never_count_whatever_they_hold(compute, real):
    state = start(compute, batch(real=real))
    found = []
    for fill, label in ((0.0, 0), (1e30, -1), (-1e9, 10_000), (12.5, 2)):
        garbage = batch(mask=MASK, real=real)
        garbage["image"][~MASK] = fill
        garbage["label"][~MASK] = fill if real else label
        after, metrics = advance(compute, state, garbage)
        found.append((variables(after), metrics, evaluate(compute, state, garbage)))
    for other in found[1:]:
        chex.assert_trees_all_equal(found[0], other)
    other_rows = batch(mask=~MASK, real=real)
    changed, _ = advance(compute, state, other_rows)
    assert not np.allclose(jax.tree.leaves(changed.params)[0], jax.tree.leaves(found[0][0])[0])


@pytest.mark.parametrize(("compute", "real"), [(SPLIT[2, False], False), (WHOLE[True], True)])
def test_a_fully_masked_batch_changes_nothing(compute, real):
    state, _ = advance(compute, start(compute, batch(real=real)), batch(1, real=real))
    nothing = batch(2, mask=np.zeros(12, bool), real=real)
    after, metrics = advance(compute, state, nothing)
    chex.assert_trees_all_equal(variables(after), variables(state))
    assert (after.step, metrics["skipped"].total, metrics["loss"].count) == (2, 0, 0)
    assert all(metric.count == 0 for metric in evaluate(compute, state, nothing).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Task):
    """Gradient and loss are those that the batch holds; a counter counts the micro-batches."""

    def init(self, model, key, batch):
        return {"params": {"w": jnp.ones(3)}, "memory": {"m": jnp.zeros(())}}

    def gradient(self, model, state, batch, key):
        metrics = {
            "loss": Mean(batch["loss"].sum(), jnp.ones(())),
            "noise": Mean(jax.random.uniform(key), jnp.ones(())),
        }
        memory = {"memory": {"m": state.collections["memory"]["m"] + 1}}
        return {"w": batch["gradient"].sum(0)}, jnp.ones(()), memory, metrics


GIVEN = Program(LINEAR, Given(), Adam(0.1).build(100))


def given(gradient=1.0, loss=1.0):
    return {
        "gradient": np.array([[1.0, gradient, 1.0], [0.0, 0.0, 0.0]], np.float32),
        "loss": np.array([loss, 0.0], np.float32),
        "mask": np.ones(2, bool),
    }


@pytest.mark.parametrize(
    "bad", [given(np.nan), given(np.inf), given(loss=np.inf), given(loss=np.nan)]
)
def test_a_non_finite_gradient_or_loss_skips_the_step(bad):
    state, _ = advance(GIVEN, start(GIVEN, given()), given())
    after, metrics = advance(GIVEN, state, bad)
    chex.assert_trees_all_equal(variables(after), variables(state))
    chex.assert_trees_all_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))
    assert after.step == state.step + 1
    assert (metrics["skipped"].total, metrics["skipped"].count) == (1, 1)
    counted = {name: (m.total, m.count) for name, m in metrics.items() if name != "skipped"}
    assert counted == {"loss": (0, 0), "noise": (0, 0)}
    again, metrics = advance(GIVEN, after, given())
    assert (metrics["skipped"].total, again.collections["memory"]["m"]) == (0, 2)
    chex.assert_trees_all_equal(again.params, advance(GIVEN, state, given())[0].params)
    assert not np.array_equal(again.params["w"], state.params["w"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undefined(Given):
    """Has a metric that is not a number."""

    def gradient(self, model, state, batch, key):
        gradient, weight, memory, metrics = super().gradient(model, state, batch, key)
        odd = Mean(jnp.nan * metrics["noise"].total, jnp.ones(()))
        return gradient, weight, memory, {**metrics, "odd": odd}


def test_a_metric_that_is_not_finite_does_not_skip_the_step():
    compute = dataclasses.replace(GIVEN, task=Undefined())
    after, metrics = advance(compute, start(compute, given()), given())
    expected, _ = advance(GIVEN, start(GIVEN, given()), given())
    chex.assert_trees_all_equal(after.params, expected.params)
    assert (metrics["skipped"].total, metrics["loss"].total) == (0, 1)
    assert np.isnan(metrics["odd"].total)


def test_collections_pass_from_one_micro_batch_to_the_next():
    compute = dataclasses.replace(GIVEN, num_microbatches=2)
    state, _ = advance(compute, start(compute, given()), given(), given())
    assert state.collections["memory"]["m"] == 4


def test_randomness_is_a_function_of_seed_and_step_only():
    def noise(seed, step, *before):
        state, _ = advance(GIVEN, start(GIVEN, given(), seed), *before)
        state = state.replace(step=jnp.asarray(step, jnp.int32))
        return float(advance(GIVEN, state, given(2.0))[1]["noise"].total)

    drawn = {(seed, step): noise(seed, step) for seed in range(2) for step in range(3)}
    assert len(set(drawn.values())) == len(drawn), "every seed and step draws anew"
    for (seed, step), value in drawn.items():
        assert noise(seed, step, given(), given(np.nan), given(5.0)) == value


def test_each_row_has_a_key_of_its_own_in_training_and_none_in_evaluation():
    seen = []

    def mark(batch, keys):
        seen.append(keys)
        return batch if keys is None else {**batch, "loss": jax.vmap(jax.random.uniform)(keys)}

    compute = dataclasses.replace(GIVEN, transforms=(mark,))
    state = start(compute, given())
    assert seen == [None], "init needs no randomness in the data"
    state, first = step_lib.update(compute, state, given())
    _, second = step_lib.update(compute, state, given())
    assert [keys.shape for keys in seen[1:]] == [(2,), (2,)]
    rows = [np.asarray(jax.vmap(jax.random.uniform)(keys)) for keys in seen[1:]]
    assert len(np.unique(rows)) == 4
    assert [float(m["loss"].total) for m in (first, second)] == [float(r.sum()) for r in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game(Task):
    """Two players: `left` nears the mean of all rows, `right` that of the rows labelled True."""

    def init(self, model, key, batch):
        start = jnp.zeros(batch["image"].shape[1])
        return {"params": {"left": {"v": start, "w": start}, "right": {"w": start}}}

    def gradient(self, model, state, batch, key):
        all_rows = batch["mask"].astype(jnp.float32)
        rows = {"left": all_rows, "right": all_rows * batch["label"]}
        gradients = {
            player: {k: rows[player] @ (w - batch["image"]) for k, w in weights.items()}
            for player, weights in state.params.items()
        }
        return gradients, {player: counted.sum() for player, counted in rows.items()}, {}, {}


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_each_player_of_a_game_is_divided_by_its_own_weight(num_microbatches):
    compute = Program(LINEAR, Game(), SGD(0.5).build(9), num_microbatches=num_microbatches)
    example = {**batch(mask=MASK), "label": np.arange(12) % 3 == 0}
    before = start(compute, example)
    state, metrics = advance(compute, before, example)
    x, marked = example["image"][MASK], example["image"][MASK & example["label"]]
    assert 0 < len(marked) < len(x)
    for player, rows in (("left", x), ("right", marked)):
        for name, weight in before.params[player].items():
            expected = weight - 0.5 * (weight - rows.mean(0))
            np.testing.assert_allclose(state.params[player][name], expected, atol=1e-6)
    idle = {**example, "label": np.zeros(12, bool)}
    after, idle_metrics = advance(compute, state, idle)
    chex.assert_trees_all_equal(after.params["right"], state.params["right"])
    assert not np.allclose(after.params["left"]["w"], state.params["left"]["w"])
    assert metrics["skipped"].total == idle_metrics["skipped"].total == 0


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_a_player_without_examples_does_not_move(num_microbatches):
    optimizer = SGD(0.3, momentum=0.9, weight_decay=0.1, ema_decay=0.5).build(9)
    compute = Program(LINEAR, Game(), optimizer, num_microbatches=num_microbatches)
    both = {**batch(mask=MASK), "label": np.arange(12) % 3 == 0}
    before, _ = advance(compute, start(compute, both), both)
    after, _ = advance(compute, before, {**both, "label": np.zeros(12, bool)})
    found = [
        {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state)}
        for state in (before, after)
    ]
    moved = {path for path, x in found[0].items() if not np.array_equal(x, found[1][path])}
    left = {path for path in found[0] if "'left'" in path}
    assert len(left) == 6, "parameters, momentum and average, of v and w each"
    assert left <= moved
    assert not [path for path in moved if "'right'" in path]
    resumed, _ = advance(compute, after, both)
    assert not np.array_equal(resumed.params["right"]["w"], after.params["right"]["w"])


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_a_gradient_that_is_not_finite_skips_only_its_player(num_microbatches):
    """The others go on, and a part of its own counts no step: as if that batch had never been."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Spoilt(Game):
        def gradient(self, model, state, batch, key):
            gradients, weight, _, _ = super().gradient(model, state, batch, key)
            gradients["right"]["w"] = gradients["right"]["w"] / batch["good"].min()
            losses = {"right_loss": Mean(1 / batch["good"].sum(), 1.0), "loss": Mean(jnp.inf, 1.0)}
            return gradients, weight, {}, losses | {"left_loss": Mean(jnp.ones(()), 1.0)}

    parts = {name: Adam(0.3, schedule=Linear(), ema_decay=0.5) for name in ("left", "right")}
    shared = Adam(0.3, schedule=Linear(), clip_norm=1.0)
    good = {**batch(), "label": np.arange(12) % 3 == 0, "good": np.ones(12, np.float32)}
    bad = {**good, "good": np.zeros(12, np.float32)}
    found = {}
    for optimizer in (Partition(parts=tuple(parts.items())), shared):
        tx = optimizer.build(9)
        compute = Program(LINEAR, Spoilt(), tx, num_microbatches=num_microbatches)
        before, _ = advance(compute, start(compute, good), good)
        after, metrics = advance(compute, before, bad)
        assert metrics["skipped"].total == 1
        counts = {name: float(metrics[name].count) for name in ("loss", "left_loss", "right_loss")}
        assert counts == {"loss": 0, "left_loss": num_microbatches, "right_loss": 0}
        chex.assert_trees_all_equal(after.params["right"], before.params["right"])
        resumed, _ = advance(compute, after, good)
        assert np.isfinite(jax.tree.leaves(resumed.params)[0]).all()
        found[type(optimizer)] = resumed, advance(compute, before, good)[0]
    # The right player took a step fewer in the first case: it is where the second ends.
    three, two = found[Partition]
    for state in ("params", "opt_state"):
        one, other = (
            {
                jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(each, state))
                # The second part of the optimizer is that of `right`, with its counters.
                if any(name in jax.tree_util.keystr(path) for name in ("'right'", "['1']"))
            }
            for each in (three, two)
        )
        assert one.keys() == other.keys()
        assert any("count" in name for name in one) or state == "params"
        for name, leaf in one.items():
            np.testing.assert_array_equal(leaf, other[name])
    assert not np.array_equal(three.params["left"]["w"], two.params["left"]["w"])


def watched(count, ahead):
    """A strategy and a hook that note how many steps the device is ahead of the hooks."""
    dispatched = [0]

    @dataclasses.dataclass(frozen=True)
    class Watched(Single):
        def compile(self, program, in_memory, step_input):
            steps = super().compile(program, in_memory, step_input)

            def noted(function, many):
                def call(state, step_input):
                    dispatched[0] += many
                    return function(state, step_input)

                return call

            one, many = noted(steps.update, 1), noted(steps.update_many, count)
            return dataclasses.replace(steps, update=one, update_many=many)

    class Watcher(Callback):
        def __call__(self, event):
            ahead.append(dispatched[0] - event.step)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watch(Hook):
        def build(self, run):
            return Watcher()

    return Watched(), Watch()


def test_training_rows_and_parameters_do_not_depend_on_steps_per_execution(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(50, 5)), "label": rng.integers(0, 3, 50)}
    data = Arrays({"train": arrays}, test_fraction=0.0)
    found = {}
    for count in (1, 3):
        ahead = []
        strategy, watch = watched(count, ahead)
        experiment = jdl.Experiment(
            model=MLP(widths=(8,), features=3, dropout_rate=0.3),
            data=data,
            optimizer=SGD(0.05),
            strategy=strategy,
            hooks=(Evaluate(every=7), Checkpoint(every=9), watch),
            steps=20,
            batch_size=8,
            runtime=jdl.Runtime(log_every=3, steps_per_execution=count),
        )
        run = jdl.train(experiment, tmp_path / str(count))
        found[count] = read_rows(tmp_path / str(count) / "metrics.jsonl"), run.gather_state().params
        assert bool(run.traces.get("update_many")) == (count > 1)
        # Metrics are fetched one dispatch late, and never later.
        assert len(ahead) == 20
        assert max(ahead) == 2 * count - 1
    (one_rows, one_params), (many_rows, many_params) = found.values()
    assert [row["step"] for row in one_rows if row["split"] == "train"] == [*range(3, 20, 3), 20]
    assert [row["step"] for row in one_rows if row["split"] == "validation"] == [7, 14, 20]
    chex.assert_trees_all_close(one_params, many_params, atol=1e-6)
    for one, many in zip(one_rows, many_rows, strict=True):
        assert one["metrics"] == pytest.approx(many["metrics"], rel=1e-5)
        assert [one[name] for name in ("step", "epoch", "split")] == [
            many[name] for name in ("step", "epoch", "split")
        ]
