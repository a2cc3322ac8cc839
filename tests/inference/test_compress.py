"""Smaller weights: their error, their exports, and the table that compares them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.errors import UserError
from jdl.inference.export import export_prediction
from jdl.inference.weights import Quantized, dequantize, prune, quantize

pytest.importorskip("flatbuffers", reason="flatbuffers are not installed")


def params():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 6)) * np.arange(6), jnp.float32)
    return {"Conv_0": {"kernel": kernel, "bias": jnp.arange(6.0)}, "scale": jnp.ones((2, 3))}


def test_int8_is_wrong_by_half_a_step_of_each_channel_at_most():
    given = params()
    small = quantize(given)
    kernel = small["Conv_0"]["kernel"]
    assert isinstance(kernel, Quantized)
    assert (kernel.values.dtype, kernel.scale.shape) == (jnp.int8, (1, 1, 1, 6))
    assert np.abs(kernel.values).max((0, 1, 2)).tolist() == [0, *[127] * 5], "a channel is zeros"
    assert small["Conv_0"]["bias"] is given["Conv_0"]["bias"]
    assert small["scale"] is given["scale"]
    error = np.abs(dequantize(small)["Conv_0"]["kernel"] - given["Conv_0"]["kernel"])
    step = np.abs(given["Conv_0"]["kernel"]).max((0, 1, 2)) / 127
    assert (error <= 0.5001 * step).all()


def test_the_smallest_weights_of_all_kernels_are_pruned():
    given = {**params(), "Dense_0": {"kernel": jnp.linspace(-9.0, 9.0, 34).reshape(2, 17)}}
    found = prune(given, 0.6)
    before, after = (
        np.abs(np.concatenate([x[name]["kernel"].ravel() for name in ("Conv_0", "Dense_0")]))
        for x in (given, found)
    )
    assert (after == 0).sum() == 150
    assert before[after == 0].max() < before[after != 0].min()
    assert (found["scale"] == 1).all()
    with pytest.raises(UserError, match=r"the share of weights to prune, in \[0, 1\), not 1"):
        prune(given, 1.0)


def test_an_int8_export_predicts_what_was_scored(trained, command):
    run = jdl.open(trained)
    state = run.evaluation_state(run.gather_state())
    function = export_prediction(run, weights="int8")
    assert "tensor<3x4xi8>" in function.mlir_module()
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    rounded = state.replace(params=dequantize(quantize(state.params)))
    expected = run.predict(x, state=rounded)
    np.testing.assert_allclose(function.call(image=x), expected, atol=1e-6)
    assert np.abs(expected - run.predict(x)).max() > 1e-5
    code, out, err = command("export", trained, "a.stablehlo", "--weights", "int8")
    assert (code, err) == (0, "")
    assert out.startswith("a.stablehlo: (image: float32[rows,3])")


def test_a_table_compares_runs_and_variants(trained, command, monkeypatch):
    monkeypatch.setattr("jdl.inference.compress.SECONDS", 0.01)
    code, out, err = command("compress", trained, "--sparsity", "0.5", "--rows", "4")
    assert (code, err) == (0, "")
    header, *rows = [re.split("  +", line) for line in out.splitlines()]
    assert header[:5] == ["run", "weights", "zeros", "test.accuracy", "change"]
    assert [row[1:3] for row in rows] == [
        ["fp32", "0%"], ["int8", "0%"], ["fp32", "50%"], ["int8", "50%"]
    ]  # fmt: skip
    score = jdl.open(trained).evaluate("test")["accuracy"]
    assert rows[0][3:5] == [f"{score:.4f}", "+0.0000"]
    assert all(row[0] == str(trained) for row in rows)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sparsity", "1.5"], "the sparsity is the share of weights to prune"),
        (["--metric", "accuracy"], "--metric is SPLIT.NAME"),
        (["--metric", "test.acuracy"], "no metric 'acuracy' of test .*did you mean 'accuracy'"),
        (["--metric", "tset.accuracy"], "no split 'tset'"),
        (["--rows", "0"], "--rows must be at least 1"),
    ],
)
def test_wrong_options_are_named(trained, command, words, complaint):
    code, out, err = command("compress", trained, *words)
    assert (code, out) == (2, "")
    assert re.search(complaint, err)


def test_no_run_is_named(command):
    assert command("compress")[2] == "jdl: compress takes one run directory or more\n"
    assert "nowhere is no run directory" in command("compress", "nowhere")[2]


def test_weights_are_leaves_of_a_tree():
    assert len(jax.tree.leaves(quantize(params()))) == 4
