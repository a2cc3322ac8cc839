"""Estimates of a plan against closed forms, real shards and XLA's allocations."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import ops, step
from jdl.analysis import flops, memory
from jdl.analysis.plan import FILLED, Trial, lines, parse_bytes, plan, utilization
from jdl.data import AlternatingFlip, Arrays, Bytes, Tokens
from jdl.errors import UserError
from jdl.models import CNN, GPT, MLP
from jdl.optimizers import SGD, Adam
from jdl.parallel import DataParallel, FullySharded, Single, TensorParallel
from jdl.step import Program
from jdl.tasks import Classification, LanguageModeling

IMAGES = {"image": np.zeros((500, 14, 14, 1), np.float32), "label": np.zeros(500, np.int32)}
WINDOWS = {"tokens": np.zeros((500, 33), np.int32)}
SMALL_GPT = GPT(vocab_size=32, max_position_embeddings=32, num_layers=2, num_heads=2, embed_dim=32)


def experiment(model, **changes):
    language = isinstance(model, GPT)
    settings = {
        "model": model,
        "task": LanguageModeling() if language else Classification(),
        "data": Arrays({"train": WINDOWS if language else IMAGES},
                       test_fraction=0.0, validation_fraction=0.0),
        "optimizer": Adam(1e-3),
        "strategy": Single(),
        "steps": 100,
        "batch_size": 16,
        **changes,
    }  # fmt: skip
    return jdl.Experiment(**settings)


def given(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_dense_network_in_closed_form():
    found = plan(experiment(MLP((64, 32), 10)), rate=1e9, memory=10**9)
    assert found.modules == {"Dense_0": 197 * 64, "Dense_1": 65 * 32, "logits": 33 * 10}
    assert found.parameters == sum(found.modules.values())
    # Forward, and backward to kernels and to inputs, of which the first layer's is not needed.
    assert found.flops == 2 * 16 * (2 * 196 * 64 + 3 * 64 * 32 + 3 * 32 * 10)
    assert found.seconds == found.flops / 1e9
    assert found.bytes.parameters == found.bytes.gradients == 4 * found.parameters
    assert found.bytes.optimizer - 2 * found.bytes.parameters in range(64)  # and counters
    assert found.bytes.data == (16 + 500) * (4 * 196 + 4)


def test_a_transform_that_reads_positions_is_planned():
    flipping = Arrays({"train": IMAGES}, device_transforms=(AlternatingFlip(),), test_fraction=0.0)
    found = plan(experiment(MLP((4,), 10), data=flipping), rate=1e9, memory=10**9)
    assert found.modules == {"Dense_0": 197 * 4, "logits": 5 * 10}


def test_a_transformer_in_closed_form():
    found = plan(experiment(SMALL_GPT), rate=1e9, memory=10**9, devices=1)
    width, layers, words, time, rows = 32, 2, 32, 32, 16
    block = 12 * width**2 + 13 * width
    assert found.modules["block_0"] == found.modules["block_1"] == block
    assert found.parameters == 2 * block + (words + time) * width + 2 * width
    products = layers * 12 * width**2 + words * width
    attention = layers * 12 * time * width
    assert found.flops == rows * time * (6 * products + attention)


@pytest.mark.parametrize(
    "model",
    [MLP((128, 64), 10), CNN((8, 16), (32,), 10), SMALL_GPT, SMALL_GPT.clone(scan=True)],
    ids=["mlp", "cnn", "gpt", "scanned gpt"],
)
def test_memory_is_about_what_xla_allocates(model):
    """Within a factor of two; seen: 0.7 to 1.4."""
    trial = Trial(experiment(model, batch_size=64))
    found = trial.bytes(Single(), 1)
    own = trial.experiment
    program = Program(own.compute_model(), own.task, own.optimizer.build(100))
    batch = {k: jax.ShapeDtypeStruct((64, *v.shape[1:]), v.dtype)
             for k, v in (WINDOWS if isinstance(model, GPT) else IMAGES).items()}  # fmt: skip
    batch["mask"] = jax.ShapeDtypeStruct((64,), bool)
    state, _ = trial.traced(64)
    update = jax.jit(functools.partial(step.update, program), donate_argnums=0)
    compiled = update.lower(state, batch).compile().memory_analysis()
    predicted = found.total - trial.in_memory
    assert 0.5 < predicted / (compiled.argument_size_in_bytes + compiled.temp_size_in_bytes) < 2
    assert 0.5 < (found.activations + found.gradients) / compiled.temp_size_in_bytes < 2


def test_the_peak_of_two_products_by_hand():
    def loss(weights, x):
        return jnp.sum(jnp.tanh(x @ weights[0]) @ weights[1])

    weights, x = (given((8, 64)), given((64, 4))), given((16, 8))
    forward = jax.make_jaxpr(loss)(weights, x)
    # The tanh takes the place of its product, and the second product comes beside it.
    assert memory.peak(forward) == 4 * (16 * 64 + 16 * 4)
    # By columns and then by rows among two devices: half of the first, and the whole sum.
    assert memory.peak(forward, [1, 0, None], 2) == 4 * (16 * 64 // 2 + 16 * 4)
    gradient = jax.make_jaxpr(jax.grad(loss))(weights, x)
    assert memory.peak(gradient) >= memory.peak(forward)
    assert memory.peak(gradient, [1, 0, None], 2) < memory.peak(gradient)


def test_cheap_operations_are_not_stored_and_arrays_end_with_their_last_reader():
    def chain(x, weight):
        for _ in range(5):
            x = (2 * x + 1) @ weight
        return x

    x, weight = given((32, 32)), given((32, 32))
    one = 4 * 32 * 32
    # At most a product, what is made of it for the next, and that one.
    assert memory.peak(jax.make_jaxpr(chain)(x, weight)) <= 2 * one
    assert memory.peak(jax.make_jaxpr(lambda x: jnp.sum(jnp.abs(2 * x) + 1))(x)) <= 4


def test_a_loop_keeps_what_it_stacks():
    def stacked(x):
        return jax.lax.scan(lambda c, _: (c @ c, c), x, None, length=10)[1].sum()

    assert 10 <= memory.peak(jax.make_jaxpr(stacked)(given((32, 32)))) / (4 * 32 * 32) <= 13


def test_remat_bf16_and_accumulation_hold_less():
    def held(model=SMALL_GPT, **changes):
        own = experiment(model, batch_size=64, **changes)
        return Trial(own).bytes(Single(), 1).activations

    plain = held()
    # Without remat too, feed-forward networks store no more than their products.
    assert held(model=SMALL_GPT.clone(remat=True)) < 0.65 * plain
    assert held(precision="bf16") < 0.7 * plain
    assert held(num_microbatches=4) < 0.4 * plain


@pytest.mark.parametrize(
    "strategy", [DataParallel(), FullySharded(min_elements=1), TensorParallel()]
)
def test_the_state_lies_as_it_will_be_laid(strategy):
    own = experiment(SMALL_GPT, strategy=strategy)
    found = Trial(own).bytes(strategy, 2)
    program = Program(own.model, own.task, own.optimizer.build(100))
    step_input = {"tokens": WINDOWS["tokens"][:16], "mask": np.ones(16, bool)}
    abstract_state = strategy.compile(program, {}, step_input).abstract_state

    def bytes_of(tree):
        leaves = jax.tree.leaves(tree)
        return sum(4 * int(np.prod(x.sharding.shard_shape(x.shape))) for x in leaves)

    assert found.parameters == bytes_of(abstract_state.params)
    assert found.optimizer == bytes_of(abstract_state.opt_state)


@pytest.mark.slow
def test_the_largest_batch_fits_and_twice_as_much_does_not():
    own = experiment(SMALL_GPT, optimizer=SGD(0.1), strategy=DataParallel())
    limit = 20 * 2**20
    found = plan(own, devices=4, memory=limit, rate=1e9)
    names = {choice.strategy for choice in found.choices}
    assert names == {"data_parallel", "fully_sharded", "tensor_parallel 2", "tensor_parallel 4"}
    assert len(found.choices) == len(names) * 2 * 2
    trial, strategies = Trial(own), {"data_parallel": (DataParallel(), 4),
                                     "tensor_parallel 2": (TensorParallel(), 2)}  # fmt: skip
    for choice in found.choices:
        if choice.strategy in strategies and choice.precision == "fp32" and not choice.remat:
            strategy, parts = strategies[choice.strategy]
            assert 0 < choice.largest < 500
            rows = choice.largest // parts
            assert trial.bytes(strategy, 4, rows).total <= 1.01 * FILLED * limit
            assert trial.bytes(strategy, 4, 2 * rows).total > 0.99 * FILLED * limit
    by = {(c.strategy, c.precision, c.remat): c.bytes for c in found.choices}
    assert by["data_parallel", "fp32", True] < by["data_parallel", "fp32", False]
    assert plan(own, devices=4, memory=1000, rate=1e9).choices[0].largest == 0


def test_a_tokenizer_that_does_not_fit_the_model_is_named():
    text = {"text": ["a text", "of its own"]}
    data = Tokens(Arrays({"train": text, "validation": text}), encoding=Bytes(), length=4)
    with pytest.raises(UserError, match=r"has 256 tokens, the model 32: set model\.vocab"):
        plan(experiment(SMALL_GPT, data=data), devices=1, memory=10**9, rate=1e9)


def test_what_cannot_be_split_is_left_out_with_the_reason():
    found = plan(
        experiment(MLP((8,), 10), strategy=DataParallel()), devices=2, memory=10**9, rate=1e9
    )
    assert {choice.strategy for choice in found.choices} == {"data_parallel", "fully_sharded"}
    (note,) = found.notes
    assert note.startswith("tensor_parallel 2: no rule splits a parameter")
    assert note in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("16GiB", 16 * 2**30),
        ("1.5 mb", 1_500_000),
        ("512", 512),
        ("2K", 2000),
    ],
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "80XB", "-1GB", "0", "80 GB of it"])
def test_no_amounts_of_memory(text):
    with pytest.raises(UserError, match="is not an amount of memory: write 80GB, 16GiB"):
        parse_bytes(text)


def test_the_command_prints_a_plan_as_text_and_as_json(command, clouds):
    words = ["plan", clouds, "--devices", "8", "--memory", "16GiB", "--flops", "1e12"]
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "on each of 8 devices" in out
    assert "at 100 %, the bound" in out
    assert "fully_sharded" in out
    code, out, err = command(*words, "--batch-size", "12")
    assert "12 examples cannot be divided evenly over 8 parts" in out
    code, out, err = command(*words, "--batch-size", "64", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["batch_size"], found["devices"], found["memory"]) == (64, 8, 16 * 2**30)
    assert found["seconds"] == found["flops"] / 8 / 1e12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "lots"], "'lots' is not an amount of memory"),
        (["--devices", "0"], "for one device or more, not for 0"),
        (["--flops", "-1"], "must be positive"),
        (["--devises", "2"], "has a field 'devises'; did you mean 'devices'"),
    ],
)
def test_what_cannot_be_planned_takes_a_sentence(command, clouds, words, message):
    code, out, err = command("plan", clouds, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_data_that_is_not_at_hand_takes_a_sentence(command, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, out, err = command("plan", "mnist_mlp")
    assert (code, out) == (2, "")
    assert "mnist" in err
    assert err.count("\n") == 1


def traced(function, *shapes):
    return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


@pytest.mark.parametrize(
    ("kind", "function", "shapes"),
    [
        ("small steps", jnp.dot, [(8, 8), (8, 8)]),
        ("matrix products", jnp.dot, [(512, 512), (512, 512)]),
        (
            "matrix products",  # of layers, one after another
            lambda x, kernels: jax.lax.scan(lambda x, k: (x @ k, None), x, kernels)[0],
            [(1024, 1024), (9, 1024, 1024)],
        ),
        (
            "recurrences",
            lambda h, k, xs: jax.lax.scan(lambda h, x: (x + h @ k, None), h, xs)[0],
            [(64, 256), (256, 256), (20, 64, 256)],
        ),
        (
            "convolutions",
            lambda x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME"),
            [(8, 64, 64, 16), (3, 3, 16, 16)],
        ),
    ],
)
def test_the_kind_of_a_step(kind, function, shapes):
    jaxpr = traced(function, *shapes)
    assert utilization.kind(jaxpr, flops.of(jaxpr)) == kind


@pytest.mark.parametrize("machine", utilization.MEASURED)
def test_shares_are_those_of_the_committed_rows(machine):
    """Only in a checkout: what is installed has no rows."""
    file = {
        "two cores of an Intel Xeon": "2026-11-27-intel-xeon-2-cores.jsonl",
        "an NVIDIA H200": "2026-11-27-nvidia-h200.jsonl",
    }[machine]
    lines = (Path(__file__).parents[2] / "benchmarks" / "results" / file).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["implementation"] == "jdl"]
    for share in utilization.MEASURED[machine].values():
        found = [row["mfu_measured"] for row in rows if row["workload"] in share.workloads]
        assert min(found) == pytest.approx(share.lowest, rel=0.1, abs=0.005)
        assert max(found) == pytest.approx(share.highest, rel=0.1, abs=0.005)
        assert {row["workload"] for row in rows} >= {*share.workloads}
