"""A recurrent language model that carries its state across windows, and resets it."""

import dataclasses
import itertools
import math
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl import UserError
from jdl.data import Arrays, Streams, Tokens
from jdl.data.language import Windows, stream_starts
from jdl.data.pipeline import InMemory, Shard, open_pipeline, to_batch
from jdl.hooks import Checkpoint, Evaluate
from jdl.models import GPT, RecurrentLM
from jdl.models.rnn import CELLS
from jdl.optimizers import SGD, Adam
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.state import CARRY
from jdl.step import update
from jdl.tasks import LanguageModeling
from jdl.trainer.training_run import TrainingRun
from tests import kill_resume
from tests.interruptions import InterruptAt, Killed, interrupt_at

SMALL = {"vocab_size": 9, "hidden_size": 6, "num_layers": 2}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 9, shape), jnp.int32)


def begun(model, tokens):
    """Its variables; larger than at initialization, so that what a state holds is seen."""
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    params = jax.tree.map(lambda x: 3 * np.asarray(x), variables["params"])
    return {"params": params, CARRY: variables[CARRY]} if CARRY in variables else {"params": params}


def train(model, variables, tokens, begins, **options):
    """Logits of a training batch, and the carried state after it."""
    begins = jnp.broadcast_to(jnp.asarray(begins), len(tokens))
    options |= {"begins": begins, "train": True, "mutable": [CARRY]}
    return jax.jit(lambda *arguments: model.apply(*arguments, **options))(variables, tokens)


def set_of(text, **options):
    parts = {"train": text, "validation": text}
    arrays = {name: {"text": np.array([part], object)} for name, part in parts.items()}
    return Streams(
        Arrays(arrays), **{"length": 5, "num_streams": 4, "validation_length": 20} | options
    )


def experiment(**changes):
    text = "".join(np.random.default_rng(0).choice(list("abcdefghi"), 4 * 5 * 3 + 1))
    settings = {
        "model": RecurrentLM(**SMALL),
        "task": LanguageModeling(),
        "data": set_of(text),
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": (),
        "steps": 4,
        "batch_size": 4,
    }
    return jdl.Experiment(**settings | changes)


def updates(made, count, tmp_path):
    """After each of the first steps, its loss and the whole state on the host."""
    run = TrainingRun(made, "streams", tmp_path)
    state, step_inputs = run.compiled.init(jax.random.key(0)), run.step_inputs(0)
    for _ in range(count):
        state, packed = run.compiled.update(state, run.compiled.put(next(step_inputs)))
        gather_state = run.compiled.gather(state)
        yield (
            packed.unpack()[0]["loss"].compute(),
            jax.device_get((gather_state.params, gather_state.collections)),
        )


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_in_two_parts_is_the_layer_gradients_included(cell):
    layer = CELLS[cell](5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 4)), jnp.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 7, 5)), jnp.float32)

    def in_parts(params):
        state = layer.apply(params, 3, method="initial_state")
        first, state = layer.apply(params, x[:, :4], state, method="unroll")
        second, _ = layer.apply(params, x[:, 4:], state, method="unroll")
        return (weights * jnp.concatenate([first, second], 1)).sum()

    def whole(params):
        return (weights * layer.apply(params, x)).sum()

    found, expected = (jax.jit(jax.value_and_grad(f))(params) for f in (in_parts, whole))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_two_windows_go_on_as_one_long_window(cell):
    model, tokens = RecurrentLM(**SMALL, cell=cell), draw(3, 10)
    variables = begun(model, tokens)
    first, state = train(model, variables, tokens[:, :5], True)
    second, _ = train(model, variables | state, tokens[:, 5:], False)
    whole = jax.jit(model.apply)(variables, tokens)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=1e-4, atol=1e-5)
    alone = jax.jit(model.apply)(variables | state, tokens[:, 5:])
    assert np.abs(second - alone).max() > 0.01, "in evaluation a window begins at zero"


def test_rows_that_begin_forget_and_the_others_go_on():
    model, tokens = RecurrentLM(**SMALL), draw(3, 5)
    variables = begun(model, tokens)
    fresh, state = train(model, variables, tokens, True)
    mixed, _ = train(model, variables | state, tokens, jnp.array([False, True, False]))
    further, _ = train(model, variables | state, tokens, False)
    np.testing.assert_array_equal(mixed[1], fresh[1])
    np.testing.assert_array_equal(mixed[::2], further[::2])
    assert (np.abs(further - fresh).max((1, 2)) > 0.01).all()


def test_no_gradient_flows_over_the_cut():
    model, tokens = RecurrentLM(**SMALL), draw(3, 10)
    variables = begun(model, tokens)
    weights = jnp.zeros((3, 10)).at[:, 5:].set(1)
    rest = {"targets": draw(3, 5, seed=1), "weights": weights[:, 5:]}

    def second(params, state):
        return train(model, {"params": params, **state}, tokens[:, 5:], False, **rest)[0]

    def both(params):
        _, state = train(model, {**variables, "params": params}, tokens[:, :5], True)
        return second(params, state)

    def uncut(params):
        targets = jnp.concatenate([tokens[:, :5], rest["targets"]], 1)
        return model.apply({"params": params}, tokens, targets, weights)

    params = variables["params"]
    _, state = train(model, variables, tokens[:, :5], True)
    of_params, of_state = jax.jit(jax.grad(second, argnums=(0, 1)))(params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_state))
    loss, gradient = jax.jit(jax.value_and_grad(both))(params)
    chex.assert_trees_all_close(gradient, of_params, rtol=1e-5, atol=1e-6)
    same_loss, longer = jax.jit(jax.value_and_grad(uncut))(params)
    assert loss == pytest.approx(float(same_loss), rel=1e-5)
    missing = jax.tree.map(lambda a, b: np.abs(a - b).max(), longer, of_params)
    assert max(jax.tree.leaves(missing)) > 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_no_logit_depends_on_a_later_token(cell):
    model, tokens = RecurrentLM(**SMALL, cell=cell), jnp.array([[3, 1, 4, 0, 5, 8]])
    params = begun(model, tokens)["params"]

    def scores(table):
        changed = {**params, "tokens": {"embedding": table}}
        return model.apply({"params": changed}, tokens)[0].sum(-1)

    influence = jax.jit(jax.jacobian(scores))(params["tokens"]["embedding"])[:, tokens[0]]
    reaches = np.abs(influence).sum(-1) > 0  # (time of the logits, time of the token)
    np.testing.assert_array_equal(reaches, np.tri(6, dtype=bool))


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_that_of_the_logits(tied):
    model, tokens, targets = (
        RecurrentLM(**SMALL, tie_word_embeddings=tied),
        draw(3, 5),
        draw(3, 5, seed=1),
    )
    variables = begun(model, tokens)
    weights = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 5)), jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        model.apply(variables, tokens), targets
    )
    found = jax.jit(model.apply)(variables, tokens, targets, weights)
    assert found == pytest.approx(float((weights * losses).sum()), rel=1e-5)


def test_dropout_is_on_the_way_up_and_not_on_the_way_on():
    """With everything dropped that may be, logits are zero and the states are those of no input."""
    model = RecurrentLM(**SMALL, dropout_rate=1.0)
    tokens = draw(3, 5)
    variables = begun(model, tokens)
    held = jax.tree.map(lambda x: x + 0.5, variables[CARRY])
    logits, state = train(
        model, {**variables, CARRY: held}, tokens, False, rngs={"dropout": jax.random.key(0)}
    )
    assert not logits.any()
    layer, params = CELLS["lstm"](6), {"params": variables["params"]["LSTM_1"]}
    _, last = layer.apply(params, jnp.zeros((3, 5, 6)), held["layer_1"], method="unroll")
    chex.assert_trees_all_close(state[CARRY]["layer_1"], last, rtol=1e-5)


def test_parameter_counts_are_the_closed_forms():
    def count(**fields):
        shapes = jax.eval_shape(RecurrentLM(**fields).init, jax.random.key(0), draw(1, 2))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))

    layers = {"simple": 2 * 36 + 6, "gru": 6 * 36 + 3 * 6 + 6, "lstm": 8 * 36 + 4 * 6}
    for cell, size in layers.items():
        assert count(**SMALL, cell=cell) == 2 * 9 * 6 + 2 * size
        assert count(**SMALL, cell=cell, tie_word_embeddings=True) == 9 * 6 + 2 * size
    # Zaremba's medium network, but for the bias of the logits.
    assert count(vocab_size=10_000, hidden_size=650, num_layers=2) == 19_765_200


def test_streams_lie_side_by_side_and_predict_each_token_once():
    starts = stream_starts(101, length=4, streams=3)
    begins = np.arange(24) < 3
    source = Windows(np.arange(101, dtype=np.int32), np.ones(101, int), 4, starts, begins)
    assert len(source) == 8 * 3
    examples = [source[i] for i in range(len(source))]
    for row in range(3):
        rows = examples[row::3]
        np.testing.assert_array_equal(
            np.stack([each["tokens"] for each in rows]),
            32 * row + 4 * np.arange(8)[:, None] + np.arange(5),
        )
        assert [bool(each["begins"]) for each in rows] == [True] + [False] * 7
    predicted = np.sort(np.concatenate([each["tokens"][1:] for each in examples]))
    np.testing.assert_array_equal(predicted, np.arange(1, 97))


@pytest.mark.parametrize("kind", ["in_memory", "grain"])
def test_epochs_are_read_in_order_and_begin_anew(kind):
    data = dataclasses.replace(experiment().data, pipeline=kind)
    splits = data.splits()
    pipeline = open_pipeline(data, splits["train"], "train")
    in_memory = {}
    if isinstance(pipeline, InMemory):
        in_memory = {name: jnp.asarray(array) for name, array in pipeline.arrays.items()}
    step_inputs = pipeline.step_inputs(0, 4, 7, Shard())
    batches = [to_batch(in_memory, next(step_inputs)) for _ in range(7)]
    assert [batch["begins"].tolist() for batch in batches] == [
        [step % 3 == 0] * 4 for step in range(7)
    ]
    for before, after in itertools.pairwise(batches):
        if not after["begins"].any():
            np.testing.assert_array_equal(after["tokens"][:, 0], before["tokens"][:, -1])
    np.testing.assert_array_equal(batches[1]["tokens"], batches[4]["tokens"])
    later = next(pipeline.step_inputs(4, 4, 7, Shard()))
    np.testing.assert_array_equal(to_batch(in_memory, later)["tokens"], batches[4]["tokens"])
    validation = [splits["validation"][i] for i in range(len(splits["validation"]))]
    assert all(each["begins"] and each["tokens"].shape == (21,) for each in validation)


def test_a_run_carries_its_state_through_an_epoch_and_no_further(tmp_path):
    """At a rate of zero, so that the states can be had from the text alone."""
    still = experiment(optimizer=SGD(0.0))
    source = still.data.splits()["train"]
    windows = [np.stack([source[4 * t + i]["tokens"] for i in range(4)]) for t in range(3)]
    whole = jnp.concatenate([window[:, :-1] for window in windows], 1)
    states = [state for _, state in updates(still, 4, tmp_path)]
    for (params, found), tokens in ((states[2], whole), (states[3], whole[:, :5])):
        variables = {"params": params, **jax.tree.map(jnp.zeros_like, found)}
        _, expected = train(still.model, variables, tokens, True)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_what_only_the_state_knows_is_learned(tmp_path):
    """In "aabb" the next letter depends on the one before the last: of three, one is a cut away."""
    last = {}
    for carry in (False, True):
        model = RecurrentLM(vocab_size=2, hidden_size=8, num_layers=1, cell="gru", carry=carry)
        data = set_of("aabb" * 125 + "a", length=3)
        made = experiment(model=model, data=data, optimizer=Adam(0.03))
        losses = [loss for loss, _ in updates(made, 160, tmp_path)]
        last[carry] = np.mean(losses[-40:])
    assert last[True] < 0.05
    assert last[False] > 0.9 * math.log(2) / 3


def test_it_learns_one_batch_by_heart():
    text = "".join(np.random.default_rng(1).choice(list("abcdefghi"), 4 * 6 + 1))
    data = set_of(text, length=6)
    model = RecurrentLM(vocab_size=9, hidden_size=24, num_layers=2)
    run = jdl.train(experiment(model=model, data=data, optimizer=Adam(0.02), steps=150))
    assert run.result["metrics"]["train"]["loss"] < 0.3  # the first characters are anyone's guess
    probabilities = run.predict({"tokens": data.splits()["train"][0]["tokens"][None]})
    assert probabilities.shape == (1, 6, 9)


def test_strategies_carry_the_same_states(tmp_path):
    alone, *others = (
        [state for _, state in updates(experiment(strategy=strategy), 4, tmp_path)][-1]
        for strategy in (Single(), DataParallel(2), FullySharded(2, min_elements=1))
    )
    for other in others:
        chex.assert_trees_all_close(other, alone, rtol=1e-5, atol=1e-6)


def test_a_broken_run_ends_as_one_that_never_was(tmp_path):
    hooks = (InterruptAt(), Evaluate(every=3), Checkpoint(every=4), InterruptAt())
    model = RecurrentLM(**SMALL, dropout_rate=0.2)
    whole = experiment(model=model, hooks=hooks, steps=14, runtime=jdl.Runtime(log_every=5))
    jdl.train(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        jdl.train(interrupt_at(whole, 7), tmp_path / "broken")
    with pytest.raises(SystemExit):
        jdl.train(interrupt_at(whole, 9, signal.SIGTERM), tmp_path / "broken")
    run = jdl.train(whole, tmp_path / "broken")
    assert kill_resume.differences(tmp_path / "whole", tmp_path / "broken") == []
    assert all(np.any(leaf) for leaf in jax.tree.leaves(run.state.collections[CARRY]))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {
            "model": GPT(
                vocab_size=9, max_position_embeddings=20, num_layers=1, num_heads=1, embed_dim=4
            )
        },
    ],
    ids=["bf16", "a model that knows no beginnings"],
)
def test_a_step_leaves_collections_as_it_found_them(changes, tmp_path):
    run = TrainingRun(experiment(**changes), "streams", tmp_path)
    begun = run.compiled.abstract_state
    after = jax.eval_shape(lambda s, b: update(run.program, s, b)[0], begun, run.batch)
    for found, expected in zip(
        jax.tree.leaves(after.collections), jax.tree.leaves(begun.collections), strict=True
    ):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.dtype == jnp.bfloat16


REFUSED = {
    "micro-batches": (
        lambda: experiment(num_microbatches=2),
        "RecurrentLM carries the state of each row .* num_microbatches splits",
    ),
    "pmap": (
        lambda: experiment(strategy=Pmap(2)),
        "RecurrentLM carries the state of each row .* pmap averages",
    ),
    "another batch size": (lambda: experiment(batch_size=8), "fits batches of 4, not of 8"),
    "too short": (
        lambda: experiment(data=set_of("ab")),
        "arrays has 2 tokens, too few for 4 streams of windows of 5",
    ),
    "shuffled": (lambda: set_of("ab", shuffle=True), "streams are read in order"),
    "no length": (lambda: set_of("ab", length=0), "data.length must be at least 1, not 0"),
    "no streams": (
        lambda: experiment(data=Tokens(set_of("abcdefghi" * 9).text, length=5)),
        r"RecurrentLM continues where .* jdl\.data\.Streams",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        jdl.train(make(), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_without_a_carried_state_any_windows_and_any_strategy_will_do(tmp_path):
    model = RecurrentLM(**SMALL, carry=False)
    data = Tokens(set_of("abcdefghi" * 9).text, length=5)
    for changes in ({"num_microbatches": 2}, {"strategy": Pmap(2)}):
        run = TrainingRun(experiment(model=model, data=data, **changes), "windows", tmp_path)
        assert run.compiled.abstract_state.collections == {}
