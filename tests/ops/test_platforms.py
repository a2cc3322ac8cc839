"""Every operation holds its form for the platform that it is lowered for, and no other."""

import functools
import re
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import jdl
from jdl import ops
from jdl.models import GPT
from jdl.ops import cross_entropy
from jdl.ops.platforms import portable
from jdl.step import scan_or_unroll

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def dense(x, kernel):
    return ops.dot_general(x, kernel, (((2,), (0,)), ((), ())))


def convolve(x, kernel):
    def body(carry, x):
        return jax.lax.conv(carry, 0.1 * kernel, (1, 1), "SAME") + x, carry.sum()

    return scan_or_unroll(body, x[0], x)


def convolve_images(x, kernel):
    def body(carry, x):
        return ops.conv_general_dilated(carry, 0.1 * kernel, (1, 1), "SAME") + x, carry.sum()

    return scan_or_unroll(body, x[0], x)


TARGETS = jnp.arange(40) % 7
CASES = {
    "attention": (
        functools.partial(ops.attention, causal=True),
        draw((2, 70, 4, 3), (2, 70, 2, 3), (2, 70, 2, 3)),
    ),
    "dense": (dense, draw((2, 3, 5), (5, 7))),
    "lstm": (ops.lstm, draw((23, 2, 12), (2, 3), (2, 3), (3, 12))),
    "gru": (ops.gru, draw((23, 2, 9), (2, 3), (3, 9), (3,))),
    "cross-entropy": (
        lambda h, k: ops.linear_cross_entropy(h, k, TARGETS, TARGETS / 3),
        draw((40, 5), (7, 5)),
    ),
    "scan of convolutions": (convolve, draw((4, 1, 2, 6, 6), (2, 2, 3, 3))),
    "scan of our convolutions": (convolve_images, draw((4, 1, 6, 6, 2), (3, 3, 2, 2))),
}


@pytest.fixture(autouse=True)
def _few_logits(monkeypatch):
    """The logits of the case above are computed in chunks on CPUs only."""
    monkeypatch.setitem(cross_entropy.LOGITS, "cpu", 100)


def gradients(function, arguments):
    def total(arguments):
        return sum(jnp.sin(x).sum() for x in jax.tree.leaves(function(*arguments)))

    return jax.value_and_grad(total)(arguments)


@pytest.mark.parametrize(("function", "arguments"), CASES.values(), ids=CASES)
def test_the_forms_for_other_platforms_compute_the_same(function, arguments, monkeypatch):
    here = gradients(function, arguments)
    for platform in ("cuda", "tpu"):

        def chosen(*arrays, default, platform=platform, **forms):
            return forms.get(platform, default)(*arrays)

        monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
        chex.assert_trees_all_close(gradients(function, arguments), here, rtol=1e-4, atol=1e-5)


def test_no_form_is_chosen_while_a_program_is_traced():
    root = Path(jdl.__file__).parent
    folders = ("ops", "layers", "models", "tasks", "optimizers", "parallel", "decoding")
    files = [root / "step.py", *(file for name in folders for file in (root / name).glob("*.py"))]
    assert len(files) > 50
    assert not [file for file in files if "default_backend" in file.read_text()]


GPUS = {"cuda", "rocm"}
SIGNS = {  # an operation, how often a form that is known by it has it, and that form's platforms
    "attention": ("optimization_barrier", 1, {"cpu"}),
    "dense": ("reshape", 3, {"cpu"}),
    "lstm": ("reshape", 100, GPUS),
    "gru": ("reshape", 100, GPUS),
    "cross-entropy": ("sort", 1, {"cpu"}),
    "scan of convolutions": ("while", 1, {*GPUS, "tpu"}),
    "scan of our convolutions": ("while", 1, {*GPUS, "tpu"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_platform_gets_its_own_form(case):
    function, arguments = CASES[case]
    operation, least, expected = SIGNS[case]
    traced = jax.jit(functools.partial(gradients, function)).trace(arguments)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in PLATFORMS}
    assert {p for p in PLATFORMS if texts[p].count(f"stablehlo.{operation}") >= least} == expected
    if case != "cross-entropy":  # whose chunks are conditional
        assert "conditional" not in traced.lower().compile().as_text(), "the form is inlined"


def test_an_export_holds_the_form_of_each_platform():
    function, arguments = CASES["dense"]
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda"))(*arguments)
    text = exported.mlir_module()
    assert text.count("stablehlo.reshape ") == 2, "the CPU's"
    assert re.search(r"dot_general .*tensor<2x3x5xf32>", text), "the GPU's"
    np.testing.assert_allclose(exported.call(*arguments), function(*arguments), rtol=1e-6)


def test_scanned_blocks_are_unrolled_on_cpus_only():
    model = GPT(
        vocab_size=7, max_position_embeddings=4, num_layers=3, num_heads=1, embed_dim=4, scan=True
    )
    tokens = jnp.ones((2, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def loss(params):
        return model.apply(params, tokens).sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in PLATFORMS}
    assert {p: text.count("stablehlo.while") for p, text in texts.items()} == {
        "cpu": 0, "cuda": 2, "rocm": 2, "tpu": 2,
    }  # fmt: skip


@pytest.fixture
def cudnn(monkeypatch):
    """As where JAX's plugin for CUDA is installed: its version of cuDNN can be asked for."""
    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["jdl.ops.attention"], "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)


def attend(query, key, value, mask, causal):
    return jnp.sin(ops.attention(query, key, value, mask=mask, causal=causal)).sum()


def calls(function, *arguments, platform="cuda"):
    """The custom calls of a function's gradient, lowered for a platform."""
    gradient = jax.grad(function, (0, 1, 2))
    traced = jax.jit(jax.vmap(gradient) if arguments[0].ndim > 4 else gradient).trace(*arguments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"custom_call @__cudnn\$fmha(\w+)", text), text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("runs", [(), (3,)], ids=["one", "vmapped"])
def test_16_bits_are_attended_by_cudnn_on_nvidia_gpus_only(runs, masked, causal, cudnn, caplog):
    shape = jax.ShapeDtypeStruct((*runs, 2, 16, 2, 8), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((*runs, 2, 1, 1, 16), bool) if masked else None
    function = functools.partial(attend, causal=causal)
    found, _ = calls(function, shape, shape, shape, mask)
    kind = "ScaleBiasSoftmax" if masked else "Softmax"
    assert found == [kind, f"{kind}Backward"]
    for platform in ("cpu", "rocm", "tpu"):
        assert calls(function, shape, shape, shape, mask, platform=platform)[0] == []
    assert not caplog.text


def test_what_cudnn_refuses_is_attended_by_xla_with_a_logged_reason(cudnn, caplog):
    odd = jax.ShapeDtypeStruct((2, 16, 2, 7), jnp.bfloat16)
    found, text = calls(functools.partial(attend, causal=True), odd, odd, odd, None)
    assert found == []
    assert "dot_general" in text
    assert "attention runs without cuDNN: The head dim must be" in caplog.text


def test_32_bits_and_exports_are_attended_without_cudnn(cudnn, caplog):
    function = functools.partial(attend, causal=True)
    wide = jax.ShapeDtypeStruct((2, 16, 2, 8), jnp.float32)
    assert calls(function, wide, wide, wide, None)[0] == []
    half = jax.ShapeDtypeStruct(wide.shape, jnp.bfloat16)
    with portable():
        assert calls(function, half, half, half, None)[0] == []
    assert calls(function, half, half, half, None)[0]
    assert not caplog.text
