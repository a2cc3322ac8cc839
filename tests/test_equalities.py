"""What changes memory or speed changes no result: remat, scan, micro-batches; and bf16 hardly does.

Tolerances: losses to 1e-5 and gradients to 1e-4 of a leaf's largest in float32; in bfloat16 losses
to 1 % and gradients to 5 % of their norm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.analysis import flops
from jdl.models import BERT, GPT, EncoderDecoder, ViT
from jdl.optimizers import SGD
from jdl.step import Program, init, update
from jdl.tasks import Classification, LanguageModeling
from tests.tensor_steps import Translation

ROWS, TIME, WORDS = 4, 6, 11
SIZES = {"num_layers": 2, "num_heads": 2, "embed_dim": 16}
TEXT = {**SIZES, "vocab_size": WORDS, "max_position_embeddings": TIME}
LANGUAGE = (GPT(**TEXT), LanguageModeling())
CASES = {
    "gpt": LANGUAGE,
    "bert": (BERT(**TEXT, num_classes=3, dropout_rate=0.0), Classification(inputs="tokens")),
    "encoder-decoder": (EncoderDecoder(**TEXT, dropout_rate=0.0), Translation()),
    "vit": (ViT(**SIZES, patch_size=4, num_classes=3), Classification()),
}


def batch(case):
    rng = np.random.default_rng(0)
    language = case == "gpt"  # whose targets are in the window
    tokens = rng.integers(1, WORDS, (ROWS, TIME + language), np.int32)
    tokens[1, 3:] = -1 if language else 0
    arrays = {
        "tokens": tokens,
        "image": np.float32(rng.normal(size=(ROWS, 8, 8, 1))),
        "label": rng.integers(0, 3, ROWS, np.int32),
        "mask": np.ones(ROWS, bool),
    }
    return jax.tree.map(jnp.asarray, arrays)


@functools.cache
def begun(case):
    """A state with parameters drawn wide, so that every gradient is one."""
    model, task = CASES[case]
    program = Program(model, task, SGD(0.1).build(9))
    abstract_state = jax.eval_shape(
        functools.partial(init, program), jax.random.key(0), batch(case)
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.float32(rng.normal(0.1, 0.2, x.shape)), abstract_state.params
    )
    return abstract_state.replace(
        params=params, step=np.zeros((), np.int32), key=jax.random.key(0),
        opt_state=program.optimizer.init(params),
    )  # fmt: skip


def stacked(params):
    """Parameters of blocks joined along a new axis 0, wherever blocks are."""
    blocks = [params[name] for name in sorted(params) if name.startswith("block_")]
    rest = {
        name: stacked(part) if isinstance(part, dict) else part
        for name, part in params.items()
        if not name.startswith("block_")
    }
    return rest | ({"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)} if blocks else {})


@functools.cache
def descent(case, **changes):
    """Loss and gradients of a variant of the model, and the reference gradients."""
    model, task = CASES[case]
    form, state = model.clone(**changes), begun(case)
    shaped = stacked if form.scan else lambda tree: tree
    gradient = jax.jit(lambda params: task.gradient(
        form, state.replace(params=params), batch(case), jax.random.key(0)))  # fmt: skip
    gradients, weight, _, metrics = gradient(shaped(state.params))
    assert weight > 1
    return metrics["loss"].compute(), jax.device_get(gradients)


@pytest.mark.parametrize("case", CASES)
def test_remat_and_scan_change_no_loss_and_no_gradient(case):
    """Both at once: compiling takes long, and either alone is part of both."""
    loss, gradients = descent(case)
    same, found = descent(case, remat=True, scan=True)
    assert same == pytest.approx(loss, rel=1e-5)
    expected = stacked(gradients)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # A key's bias moves no probability: its gradient is rounding, and has no size of its own.
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def close(path, a, b):
        atol = 1e-4 * max(np.abs(b).max(), 1e-2 * size)
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, found, expected)
    assert sum(np.abs(leaf).max() > 1e-3 * size for leaf in jax.tree.leaves(expected)) > 10


def test_remat_computes_the_blocks_again():
    """What the equality above is about: the traced step has more products."""

    def products(**changes):
        model, task = CASES["gpt"]
        form, state = model.clone(**changes), begun("gpt")
        jaxpr = jax.make_jaxpr(lambda params: task.gradient(
            form, state.replace(params=params), batch("gpt"), jax.random.key(0))[0])  # fmt: skip
        return flops.of(jaxpr(state.params))

    blocks = 2 * ROWS * TIME * SIZES["num_layers"] * 12 * SIZES["embed_dim"] ** 2
    assert 0.5 * blocks < products(remat=True) - products() < 1.5 * blocks


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_near_float32(case):
    loss, gradients = descent(case)
    near, found = descent(case, dtype=jnp.bfloat16)
    assert near != loss
    assert near == pytest.approx(loss, rel=0.01)
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (found, gradients)
    ]
    assert flat[0].dtype == np.float32
    assert np.linalg.norm(flat[0] - flat[1]) < 0.05 * np.linalg.norm(flat[1])


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_weigh_by_their_tokens(count):
    """A window of few tokens beside full ones: a mean of means would go elsewhere."""
    windows = batch("gpt")
    windows["tokens"] = windows["tokens"].at[0, 2:].set(-1)  # one token is predicted
    model, task = LANGUAGE
    counts = np.asarray(windows["tokens"][:, 1:] >= 0).sum(1)
    assert len(set(counts.reshape(-1, count).sum(0))) > 1

    def stepped(k):
        program = Program(model, task, SGD(0.5).build(9), num_microbatches=k)
        state, metrics = jax.jit(functools.partial(update, program))(begun("gpt"), windows)
        return jax.device_get(state.params), metrics["loss"]

    whole, loss = stepped(1)
    parts, same = stepped(count)
    assert same.count == loss.count == counts.sum()
    assert same.compute() == pytest.approx(loss.compute(), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), parts, whole)
