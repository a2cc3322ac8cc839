"""The training steps of the benchmarks, lowered for accelerators without having one."""

import re
import sys
from collections import Counter
from dataclasses import dataclass, replace

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from benchmarks.ours import make_program
from benchmarks.workloads import workloads
from jdl.parallel import Functions

WORKLOADS = {workload.name: workload for workload in workloads(accelerator=True)}


@dataclass(frozen=True)
class Expected:
    """How many products a step has: three of each layer, but two where nothing is before it."""

    dense: int  # products of matrices, without those of attention
    wide: int = 0  # of these, products of float32, where bfloat16 is asked for
    convolutions: int = 0
    attentions: int = 0
    scans: int = 0  # over time, forward and backward
    chunked: bool = False  # the loss is computed in chunks
    loops: int = 0  # others
    conditions: int = 0  # besides those of the step and of chunks


BLOCK = 3 * (1 + 1 + 2)  # queries, keys and values jointly; output; feed-forward network
DECODER_BLOCK = BLOCK + 3 * (1 + 1 + 1)  # cross-attention: queries; keys and values; output
BLOCKS = 2  # of each transformer, in place of 4 to 12: all are alike
FOUND = {
    "mlp": Expected(3 * 2 - 1),
    "cnn": Expected(3 * 2, convolutions=3 * 3 - 1),
    # Input and recurrent product of one layer; the output.
    "lstm": Expected(3 * 2 + 3, scans=2),
    "transformer": Expected(BLOCKS * BLOCK + 3, attentions=BLOCKS, chunked=True),
    # Both layers call the same function for a step forward, and one for a step backward.
    "lstm_lm": Expected(2 * 3 * 2 + 3 - 2, scans=4),
    "resnet50": Expected(3, convolutions=3 * 53 - 1),
    "cifar10_resnet": Expected(3, convolutions=3 * 7 - 1),
    "vit_s16": Expected(2 + BLOCKS * BLOCK + 3, attentions=BLOCKS),
    "unet": Expected(3, convolutions=3 * 14 - 1),
    "detector": Expected(3, convolutions=3 * 14 - 1, loops=1),  # over boxes, for the heat map
    # The penalty of every fourth step: its value, what its gradient needs, and that.
    "gan": Expected(16, convolutions=40, conditions=3),
    # Mel bands and the log-probabilities' sums over labels are float32; the loss and its gradient
    # go over time.
    "ctc": Expected(24, 4, convolutions=15, loops=2),
    "bert_finetune": Expected(BLOCKS * BLOCK + 3, attentions=BLOCKS),
    "bert_base": Expected(BLOCKS * BLOCK + 3 + 3, attentions=BLOCKS),
    # Label smoothing needs hidden states times the mean embedding, row by row.
    "seq2seq": Expected(
        BLOCKS * (BLOCK + DECODER_BLOCK) + 3 + 3, 3, attentions=3 * BLOCKS, chunked=True
    ),
}


@pytest.fixture(autouse=True)
def _nvidia(monkeypatch):
    """As where JAX's plugin for CUDA is installed: its version of cuDNN can be asked for."""
    monkeypatch.setattr(sys.modules["jdl.ops.attention"], "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)


def trace(workload):
    """The step of a workload in bfloat16, traced on shapes."""
    program = make_program(workload.load("bf16"))
    batch = {
        name: jax.ShapeDtypeStruct((workload.batch, *array.shape[1:]), array.dtype)
        for name, array in workload.examples(1).items()
    }
    batch["mask"] = jax.ShapeDtypeStruct((workload.batch,), bool)
    functions = Functions.of(program)
    state = jax.eval_shape(functions.init, jax.random.key(0), {}, batch)
    return jax.jit(functions.update, donate_argnums=0).trace(state, {}, batch)


def products(text):
    """How often each kind of product occurs, and those with one and two operands of float32."""
    pattern = r"stablehlo\.(dot_general|convolution)\b.* : \((.*)\) ->"
    found = [
        (kind, re.findall(r"x([a-z]\w+)>", types)) for kind, types in re.findall(pattern, text)
    ]
    assert all({*types} <= {"bf16", "f32"} for _, types in found)
    wide = Counter(types.count("f32") for _, types in found)
    return Counter(kind for kind, _ in found), wide[1], wide[2]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_step_has_the_form_of_each_platform(name, caplog):
    expected, workload = FOUND[name], WORKLOADS[name]
    if expected.attentions:
        workload = replace(workload, changes={**workload.changes, "model.num_layers": BLOCKS})
    traced = trace(workload)
    lowered = {p: traced.lower(lowering_platforms=(p,)) for p in ("cuda", "tpu")}
    texts = {platform: each.as_text() for platform, each in lowered.items()}
    for platform, text in texts.items():
        assert not re.search(r"\bf64\b|xf64>", text)
        # cuDNN's attention has two products in its forward call, and four in its backward call.
        inner = 0 if platform == "cuda" else 6 * expected.attentions
        counts, mixed, wide = products(text)
        if platform == "tpu" or not expected.scans:
            assert counts["dot_general"] == expected.dense + inner
        assert counts["convolution"] == expected.convolutions
        assert wide == expected.wide
        # Elsewhere it is JAX's, which keeps the gradient of the scores in float32.
        assert mixed == (0 if platform == "cuda" else 2 * expected.attentions)
        assert text.count("stablehlo.while") == expected.scans + expected.chunked + expected.loops
        assert not re.search(r"stablehlo\.(send|recv|infeed|outfeed)", text)
    # A callback of the host would be another call.
    calls = Counter(re.findall(r"custom_call @([\w$]+)", texts["cuda"]))
    calls.pop("LayoutConstraint", None)
    assert {k.removesuffix("Backward") for k in calls} <= {
        "__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"
    }  # fmt: skip
    backward = sum(count for kind, count in calls.items() if kind.endswith("Backward"))
    assert (calls.total(), backward) == (2 * expected.attentions, expected.attentions)
    assert "custom_call" not in texts["tpu"]
    # GPUs unroll 20 steps of a recurrence, TPUs none; a step's product may be a function.
    steps = {p: text.count("call @") + text.count("dot_general") for p, text in texts.items()}
    assert not expected.scans or steps["cuda"] - steps["tpu"] >= 19 * expected.scans
    # The step is left out if it is not finite, and a chunk of the loss without weight.
    conditions = lowered["cuda"].as_text("hlo").count(" conditional(")
    assert conditions == 1 + expected.chunked + expected.conditions, (
        "no choice of a platform is left"
    )
    assert not caplog.text, "no operation falls back to another form"
