"""Convolutions equal XLA's and SciPy's on random shapes, with and without oneDNN."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jdl import ops
from jdl.analysis import flops
from jdl.ops import convolution, onednn


@pytest.fixture(params=["onednn", "xla"], autouse=True)
def form(request, monkeypatch):
    """Runs a test with oneDNN's convolutions, and with the forms that need no extra."""
    if request.param == "xla":
        monkeypatch.setattr(onednn, "supports", lambda *_: False)
    elif onednn.library() is None:
        pytest.skip("needs the extra `onednn` and a C++ compiler")
    jax.clear_caches()  # of lowered programs, and of ops called outside of jit
    yield request.param
    jax.clear_caches()


def draw(seed):
    """A random problem: images, a kernel, and how they meet."""
    rng = np.random.default_rng(seed)
    window, strides, dilation = (tuple(rng.integers(1, n, 2).tolist()) for n in (4, 4, 3))
    size = [int(rng.integers((w - 1) * d + 1, 12)) for w, d in zip(window, dilation, strict=True)]
    channels, outputs = (int(n) for n in rng.integers(1, 5, 2))
    lhs = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(*window, channels, outputs)), jnp.float32)
    pads = [tuple(map(int, rng.integers(0, 3, 2))) for _ in range(2)]
    padding = [pads, "SAME", "VALID"][int(rng.integers(3))]
    return lhs, rhs, strides, padding, dilation


def plain(lhs, rhs, strides, padding, dilation):
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def ours(lhs, rhs, strides, padding, dilation):
    return ops.conv_general_dilated(lhs, rhs, strides, padding, rhs_dilation=dilation)


@pytest.mark.parametrize("seed", range(10))
def test_values_gradients_and_tangents_equal_xlas(seed):
    lhs, rhs, *how = draw(seed)
    arguments, tangents = (lhs, rhs), (jnp.sin(lhs), jnp.cos(rhs))
    found, expected = (
        jax.jit(lambda a, t, f=f: jax.jvp(lambda x, k: f(x, k, *how), a, t))(arguments, tangents)
        for f in (ours, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)

    def total(arguments, function):
        return jnp.sin(function(*arguments, *how)).sum()

    found, expected = (
        jax.jit(jax.grad(total), static_argnums=1)((lhs, rhs), f) for f in (ours, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_equals_scipy():
    lhs, rhs, *_ = draw(1)
    found = ops.conv_general_dilated(lhs, rhs, (1, 1), "VALID")
    for image, outputs in zip(np.asarray(lhs), np.asarray(found), strict=True):
        for index in range(rhs.shape[-1]):
            expected = sum(
                scipy.signal.correlate2d(image[..., c], rhs[..., c, index], "valid")
                for c in range(rhs.shape[2])
            )
            np.testing.assert_allclose(outputs[..., index], expected, rtol=1e-4, atol=1e-5)


def test_a_dilated_kernel_may_be_larger_than_the_image():
    rng = np.random.default_rng(0)
    x, k = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 7, 9, 16), (3, 3, 16, 16))
    )
    how = ((1, 1), "SAME", (8, 8))
    found, expected = (
        jax.jit(jax.grad(lambda x, k, f=f: jnp.sin(f(x, k, *how)).sum(), (0, 1)))(x, k)
        for f in (ours, plain)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"features": 6, "kernel_size": (3, 3), "padding": "VALID", "strides": 2},
        {"features": 6, "kernel_size": (3, 2), "feature_group_count": 3},
        {"features": 2, "kernel_size": (3, 3), "input_dilation": 2, "padding": 1},
        {"features": 2, "kernel_size": (2, 2), "padding": "CIRCULAR"},
    ],
)
def test_in_flax_it_takes_the_place_of_xlas(options):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 3)), jnp.float32)
    layer = nn.Conv(**options)
    variables = layer.init(jax.random.key(0), x)
    other = nn.Conv(**options, conv_general_dilated=ops.conv_general_dilated)
    chex.assert_trees_all_close(
        other.apply(variables, x), layer.apply(variables, x), rtol=1e-5, atol=1e-5
    )


def test_under_vmap_and_in_bfloat16():
    lhs, rhs, *_ = draw(3)
    how = ((1, 1), "SAME", (1, 1))
    several = jax.vmap(lambda x: ours(x, rhs, *how))(jnp.stack([lhs, 2 * lhs]))
    one = plain(lhs, rhs, *how)
    chex.assert_trees_all_close(several, jnp.stack([one, 2 * one]), rtol=1e-4, atol=1e-4)
    half = ours(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), *how)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), one, rtol=0.05, atol=0.1)


def test_second_derivatives_equal_xlas():
    """A penalty on the norm of a gradient, as of a discriminator by its images."""
    lhs, rhs, strides, padding, _ = draw(5)

    def penalty(kernel, convolve):
        def score(x):
            return jnp.sin(convolve(x, kernel, strides, padding, (1, 1))).sum()

        return (jax.grad(score)(lhs) ** 2).sum()

    found, expected = (jax.grad(penalty)(rhs, f) for f in (ours, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    hessian = jax.jvp(jax.grad(lambda k: penalty(k, ours)), (rhs,), (jnp.cos(rhs),))[1]
    wanted = jax.jvp(jax.grad(lambda k: penalty(k, plain)), (rhs,), (jnp.cos(rhs),))[1]
    np.testing.assert_allclose(hessian, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("axes", "count"),
    [((0, 0), 3), ((None, 0), 3), ((1, None), 3), ((2, 3), convolution.REPEATS + 1)],
)
def test_under_vmap_values_and_gradients_equal_xlas(axes, count):
    """Of images, of kernels and of both, for few and for many; per-example gradients besides."""
    lhs, rhs, *how = draw(7)
    rng = np.random.default_rng(0)
    arguments = [
        x if axis is None else jnp.stack([x * rng.normal() for _ in range(count)], axis)
        for x, axis in zip((lhs, rhs), axes, strict=True)
    ]

    def both(function):
        def value_and_gradients(x, k):
            out, pull = jax.vjp(lambda x, k: function(x, k, *how), x, k)
            return out, pull(jnp.sin(out))

        return jax.vmap(value_and_gradients, in_axes=axes)(*arguments)

    chex.assert_trees_all_close(both(ours), both(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_group_count": 2},
        {"precision": jax.lax.Precision.HIGHEST},
        {"preferred_element_type": jnp.float32},
        {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
        {"rhs_dilation": (2, 1), "batch_group_count": 1, "precision": None},
    ],
)
def test_options_mean_what_they_mean_to_xla(options):
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=(4, 4, 4, 4)), jnp.float32) for _ in range(2))
    given = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    found = ops.conv_general_dilated(x, k, (1, 1), "SAME", **given)
    expected = jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", **given)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nothing_to_convolve():
    """An empty batch, and images smaller than the kernel."""
    for images in ((0, 5, 5, 2), (1, 2, 2, 2)):
        x, k = jnp.ones(images), jnp.ones((3, 3, 2, 4))
        out, gradients = jax.value_and_grad(
            lambda x, k: ours(x, k, (1, 1), "VALID", (1, 1)).sum(), argnums=(0, 1)
        )(x, k)
        assert out == 0
        chex.assert_trees_all_equal(gradients, (jnp.zeros_like(x), jnp.zeros_like(k)))


def lowered(form, **options):
    lhs, rhs, *how = draw(0)
    traced = jax.jit(jax.grad(lambda k, x: jnp.sin(ours(x, k, *how)).sum())).trace(rhs, lhs)
    return traced.lower(**options).as_text()


def test_lowered_for_other_platforms_it_is_xlas_convolution(form):
    """The platform is known when a program is lowered, not when it is traced."""
    for platform in ("cuda", "rocm", "tpu"):
        text = lowered(form, lowering_platforms=(platform,))
        assert text.count("stablehlo.convolution") >= 2
        assert "custom_call" not in text
    assert (onednn.CONVOLUTION in lowered(form)) == (form == "onednn")


@pytest.mark.parametrize("seed", range(4))
def test_the_form_of_gpus_for_few_channels_equals_xlas(seed):
    """2x2 blocks of pixels as channels, in a convolution without strides."""
    rng = np.random.default_rng(seed)
    kernel, size = rng.integers(3, 8, 2), rng.integers(8, 20, 2)
    x = jnp.asarray(rng.normal(size=(2, *size, rng.integers(1, 5))), jnp.float32)
    k = jnp.asarray(rng.normal(size=(*kernel, x.shape[-1], 4)), jnp.float32)
    pads = tuple(tuple(map(int, rng.integers(0, 4, 2))) for _ in range(2))
    window = convolution.Window(k.shape[:2], (2, 2), pads, (1, 1))
    shape = window.outputs(x.shape[1:3])
    g = jnp.asarray(rng.normal(size=(2, *shape, 4)), jnp.float32)
    for part, (a, b, result) in enumerate(
        ((x, k, shape), (g, k, x.shape[1:3]), (x, g, k.shape[:2]))
    ):
        forms = (convolution.ON_GPUS, convolution.BY_XLA)
        found, expected = (form[part](a, b, window, result) for form in forms)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    traced = jax.jit(lambda x, k: ops.conv_general_dilated(x, k, (2, 2), pads)).trace(x, k)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"x{4 * x.shape[-1]}x4xf32" in text, "the kernel reads four times the channels"


def test_an_exported_program_and_one_for_several_devices_do_not_need_onednn():
    lhs, rhs, *how = draw(2)
    function = jax.jit(lambda x, k: ours(x, k, *how))
    exported = jax.export.export(function)(lhs, rhs)
    assert "custom_call" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(lhs, rhs), plain(lhs, rhs, *how), rtol=1e-4, atol=1e-4)
    mesh = jax.make_mesh((2,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = jax.device_put(lhs, rows)
    assert onednn.CONVOLUTION not in function.lower(sharded, rhs).as_text()
    np.testing.assert_allclose(function(sharded, rhs), plain(lhs, rhs, *how), rtol=1e-4, atol=1e-4)


def test_without_a_compiler_the_reason_is_logged_once(monkeypatch, caplog):
    if onednn.version() is None:
        pytest.skip("needs the extra `onednn`")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(onednn.shutil, "which", lambda _: None)
    monkeypatch.setattr(onednn, "private_cache", lambda *_: onednn.Path("/nonexistent"))
    onednn.library.cache_clear()
    try:
        assert onednn.library() is None
        assert onednn.library() is None
    finally:
        onednn.library.cache_clear()
    (record,) = caplog.records
    assert "without oneDNN" in record.getMessage()
    assert "no C++ compiler is installed" in record.getMessage()


def test_flops_are_those_of_xlas_convolution():
    lhs, rhs, *how = draw(4)

    def total(x, k, function):
        return jnp.sin(function(x, k, *how)).sum()

    found, expected = (
        flops.count(jax.grad(lambda x, k, f=f: total(x, k, f), argnums=(0, 1)), lhs, rhs).flops
        for f in (ours, plain)
    )
    assert found == expected
