"""Tensor parallelism computes what one device does, with less of the state on each."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import jdl
from jdl.errors import UserError
from jdl.models import GPT, MLP
from jdl.optimizers import Adam
from jdl.parallel import Single, TensorParallel, state_bytes
from jdl.parallel.base import AXES
from jdl.step import Program, init
from jdl.tasks import Classification, LanguageModeling
from tests import tensor_steps

MESH = AbstractMesh((2, 2, 2), AXES)
MASK = np.ones(4, bool)
WINDOWS = {"tokens": np.zeros((4, 5), np.int32), "mask": MASK}
PIXELS = {"image": np.zeros((4, 6), np.float32), "label": np.zeros(4, np.int32), "mask": MASK}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The results of every case on four devices."""
    file = tmp_path_factory.mktemp("four") / "found.npz"
    command = [sys.executable, "-m", "tests.tensor_steps", "4", str(file)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(file) as found:
        return dict(found)


def of(found, case, strategy):
    prefix = f"{case}/{strategy}/"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert len(expected) > 9
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        ("gpt", "data"),
        ("gpt", "sharded"),
        ("gpt", "tensor"),
        ("gpt", "tensor and fsdp"),
        ("bert", "tensor"),
        ("encoder-decoder", "tensor"),
    ],
)
def test_steps_on_four_devices_equal_those_of_one(four, case, strategy):
    assert four["devices"] == 4
    assert_equal(of(four, case, strategy), of(four, case, "single"))


def test_steps_on_two_devices_equal_those_of_one(four):
    assert jax.device_count() == 2
    assert_equal(tensor_steps.descend("gpt", TensorParallel()), of(four, "gpt", "single"))


def program(model, task=None):
    return Program(model, task or LanguageModeling(), Adam(0.01).build(9))


def shapes(model):
    return jax.eval_shape(functools.partial(init, program(model)), jax.random.key(0), WINDOWS)


def specs(strategy, model):
    """How parameters are split, by path, and the shardings of the whole state."""
    shardings = strategy.shardings(shapes(model), MESH)
    return {
        ".".join(str(key.key) for key in path): where.spec
        for path, where in jax.tree_util.tree_flatten_with_path(shardings.params)[0]
    }, shardings


SMALL = GPT(
    vocab_size=10,
    max_position_embeddings=4,
    num_layers=2,
    num_heads=4,
    embed_dim=8,
    num_kv_heads=2,
    gated=True,
)


def test_rules_split_products_by_columns_and_then_by_rows():
    found, shardings = specs(TensorParallel(), SMALL)
    block = {k.removeprefix("block_1."): v for k, v in found.items() if k.startswith("block_1.")}
    assert block["attention.qkv.kernel"] == P(None, "tensor")
    assert block["attention.qkv.bias"] == P("tensor")
    assert block["attention.output.kernel"] == P("tensor")
    assert block["attention.output.bias"] == P()
    assert block["feed_forward.inner.kernel"] == P(None, "tensor")
    assert block["feed_forward.gate.bias"] == P("tensor")
    assert block["feed_forward.outer.kernel"] == P("tensor")
    assert block["norm1.scale"] == P()
    assert found["tokens.embedding"] == P("tensor")
    moments = [leaf for leaf in jax.tree.leaves(shardings.opt_state) if leaf.spec]
    assert len(moments) == 2 * sum(bool(spec) for spec in found.values())


def test_rules_mean_the_last_dimensions_of_scanned_blocks():
    found, _ = specs(TensorParallel(), SMALL.clone(scan=True))
    assert found["blocks.attention.qkv.kernel"] == P(None, None, "tensor")
    assert found["blocks.attention.qkv.bias"] == P(None, "tensor")


def test_an_odd_vocabulary_stays_whole_and_the_rest_is_spread_over_fsdp():
    odd = SMALL.clone(vocab_size=11)
    assert specs(TensorParallel(), odd)[0]["tokens.embedding"] == P()
    found, _ = specs(TensorParallel(fsdp=2, min_elements=8), odd)
    assert found["tokens.embedding"] == P(None, "fsdp")
    assert found["block_0.attention.qkv.kernel"] == P("fsdp", "tensor")
    assert found["block_0.attention.output.kernel"] == P("tensor", "fsdp")
    assert found["block_0.norm1.scale"] == P("fsdp")


def test_the_first_rule_that_matches_decides():
    rules = (
        ("block_0.attention.qkv.kernel", ("tensor", None)),
        (r"attention\..*", ()),
        ("positions", (None, "tensor")),
    )
    found, _ = specs(TensorParallel(rules=rules), SMALL)
    assert found["block_0.attention.qkv.kernel"] == P("tensor")
    assert found["block_0.attention.output.kernel"] == P()
    assert found["block_1.attention.qkv.kernel"] == P()
    assert found["positions"] == P(None, "tensor")
    assert found["block_0.feed_forward.outer.kernel"] == P("tensor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 0}, "strategy.tensor must be at least 1, not 0"),
        ({"rules": (("x", ("tensr",)),)}, "no axis 'tensr' .*did you mean 'tensor'"),
        ({"rules": (("x(", ("tensor",)),)}, r"'x\(' is not a regular expression"),
        ({"rules": (("x", ("tensor", "tensor")),)}, "two dimensions by one axis"),
        (
            {"rules": (("atention.qkv.kernel", (None, "tensor")),)},
            "matches no parameter; did you mean 'attention.qkv.kernel'",
        ),
        (
            {"rules": (("norm1.scale", (None, "tensor")),)},
            r"norm1.scale of shape \(8,\) cannot be split by \(None, 'tensor'\)",
        ),
        ({"rules": ((".*", ()),)}, "no rule splits a parameter"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TensorParallel(**options).shardings(shapes(SMALL), MESH)


def test_a_rule_that_does_not_divide_names_the_parameter():
    strategy = TensorParallel(rules=(("embedding", ("tensor", None)),))
    with pytest.raises(UserError, match=r"tokens.embedding of shape \(11, 8\) cannot be split"):
        strategy.shardings(shapes(SMALL.clone(vocab_size=11)), MESH)


def test_devices_that_cannot_be_shared_out_and_models_without_kernels_are_refused():
    with pytest.raises(UserError, match="2 devices cannot be divided into groups of 4"):
        TensorParallel(fsdp=2).mesh()
    with pytest.raises(UserError, match="no rule splits a parameter of this model over 2 devices"):
        TensorParallel().compile(program(MLP((8,), 3), Classification()), {}, PIXELS)


def test_devices_that_share_kernels_take_the_same_rows():
    assert TensorParallel().num_batch_shards() == 1
    assert (
        TensorParallel(tensor=1).num_batch_shards()
        == TensorParallel(tensor=1, fsdp=2).num_batch_shards()
        == 2
    )


def test_each_device_holds_half_of_the_split_state():
    wide = SMALL.clone(embed_dim=64, vocab_size=64)
    held = []
    for strategy in (Single(), TensorParallel()):
        steps = strategy.compile(program(wide), {}, WINDOWS)
        abstract_state = steps.abstract_state.replace(key=None)
        shardings = jax.tree.map(
            lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract_state
        )
        held.append(state_bytes(shardings))
    assert held[1] == pytest.approx(held[0] / 2, rel=0.05)


def test_the_forward_pass_sums_over_devices_and_gathers_no_kernel():
    model, tokens = SMALL.clone(num_layers=1, embed_dim=16), np.zeros((4, 4), np.int32)
    strategy = TensorParallel()
    state = shapes(model)
    shardings = strategy.shardings(state, strategy.mesh()).params
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x, x))
    given = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state.params,
        shardings,
    )
    text = forward.lower(given, tokens).compile().as_text()
    assert len(re.findall(r"= \S+ all-reduce(?:-start)?\(", text)) >= 2
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_the_command_line_knows_it_by_name():
    changed = jdl.override(
        jdl.load("digits_mlp").experiment, {"strategy": "tensor_parallel", "strategy.tensor": "4"}
    )
    assert changed.strategy == TensorParallel(tensor=4)
