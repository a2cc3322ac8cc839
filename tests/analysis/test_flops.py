"""FLOP counts equal closed forms, and counts made by computing with ones."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from jdl.analysis.flops import Cost, count


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops(function, *args):
    return count(function, *args).flops


# Matrix products


def dense(parameters, x):
    return jnp.sum(jax.nn.relu(x @ parameters["kernel"] + parameters["bias"]))


def test_dense_layer_and_its_gradients():
    parameters, x = {"kernel": array(7, 5), "bias": array(5)}, array(3, 11, 7)
    forward = 2 * 3 * 11 * 7 * 5
    assert flops(dense, parameters, x) == forward
    assert flops(jax.value_and_grad(dense), parameters, x) == 2 * forward
    assert flops(jax.value_and_grad(dense, argnums=(0, 1)), parameters, x) == 3 * forward


def two_layers(weights, x):
    return jnp.sum(jnp.tanh(x @ weights[0]) @ weights[1])


def test_of_two_layers_only_the_first_needs_no_input_gradient():
    first, second = 2 * 4 * 6 * 8, 2 * 4 * 8 * 3
    args = [array(6, 8), array(8, 3)], array(4, 6)
    assert flops(two_layers, *args) == first + second
    assert flops(jax.value_and_grad(two_layers), *args) == 2 * first + 3 * second


def test_remat_computes_the_first_layer_again():
    args = [array(6, 8), array(8, 3)], array(4, 6)
    plain = flops(jax.value_and_grad(two_layers), *args)
    assert flops(jax.value_and_grad(jax.checkpoint(two_layers)), *args) == plain + 2 * 4 * 6 * 8


def test_attention_over_batch_and_heads():
    def attend(query, key, value):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    batch, queries, keys, heads, width = 2, 5, 9, 3, 4
    query, key = array(batch, queries, heads, width), array(batch, keys, heads, width)
    assert flops(attend, query, key, key) == 2 * 2 * batch * heads * queries * keys * width
    library = jax.nn.dot_product_attention
    assert flops(library, query, key, key) == flops(attend, query, key, key)


def test_agrees_with_xla_on_unrolled_products():
    def chain(x, weights):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    args = array(64, 128), [array(128, 128)] * 3
    analysis = jax.jit(chain).lower(*args).compile().cost_analysis()
    assert flops(chain, *args) == 3 * 2 * 64 * 128 * 128
    assert flops(chain, *args) == pytest.approx(analysis["flops"], rel=0.03)


# Convolutions


def hits(size, kernel, strides, padding, lhs_dilation, rhs_dilation):
    """Slides a window over an array that is one at real inputs and zero elsewhere."""
    real = np.zeros([(n - 1) * d + 1 for n, d in zip(size, lhs_dilation, strict=True)], int)
    real[tuple(slice(None, None, d) for d in lhs_dilation)] = 1
    real = np.pad(real, [(max(low, 0), max(high, 0)) for low, high in padding])
    real = real[
        tuple(
            slice(max(-low, 0), n - max(-high, 0))
            for n, (low, high) in zip(real.shape, padding, strict=True)
        )
    ]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True)]
    starts = [range(0, n - r + 1, s) for n, r, s in zip(real.shape, reach, strides, strict=True)]
    return sum(
        int(
            real[
                tuple(slice(a, a + r, d) for a, r, d in zip(at, reach, rhs_dilation, strict=True))
            ].sum()
        )
        for at in itertools.product(*starts)
    )


def random_convolution(seed):
    """A convolution of random kind, its two arguments and the settings that matter."""
    random = np.random.default_rng(seed)
    dims = int(random.integers(1, 4))

    def draw(low, high):
        return tuple(int(n) for n in random.integers(low, high, dims))

    size, kernel, strides = draw(3, 8), draw(1, 4), draw(1, 4)
    lhs_dilation, rhs_dilation = draw(1, 3), draw(1, 3)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True)]
    padding = [(int(random.integers(-1, r + 1)), int(random.integers(r - 1, r + 2))) for r in reach]
    groups = {"feature_group_count": 1, "batch_group_count": 1}
    groups[str(random.choice(list(groups)))] = group = int(random.integers(1, 4))
    features_in_group, features = int(random.integers(1, 4)), group * int(random.integers(1, 3))
    batch = groups["batch_group_count"] * int(random.integers(1, 3))
    x = array(batch, features_in_group * groups["feature_group_count"], *size)
    geometry = (strides, padding, lhs_dilation, rhs_dilation)

    def convolve(x, weight):
        return jax.lax.conv_general_dilated(x, weight, *geometry, **groups)

    pairs = hits(size, kernel, *geometry) * batch // groups["batch_group_count"]
    expected = 2 * pairs * features_in_group * features
    return convolve, x, array(features, features_in_group, *kernel), expected


@pytest.mark.parametrize("seed", range(40))
def test_convolution_counts_what_meets_an_input_as_do_its_gradients(seed):
    convolve, x, weight, expected = random_convolution(seed)
    output = jax.eval_shape(convolve, x, weight)
    assert flops(convolve, x, weight) == expected
    ones, kernel = jnp.ones(x.shape), jnp.ones(weight.shape)
    to_input = jax.linear_transpose(lambda x: convolve(x, kernel), x)
    to_weight = jax.linear_transpose(lambda weight: convolve(ones, weight), weight)
    assert flops(to_input, output) == expected
    assert flops(to_weight, output) == expected


@pytest.mark.parametrize("seed", range(5))
def test_convolution_of_ones_sums_to_its_multiply_adds(seed):
    convolve, x, weight, _ = random_convolution(seed)
    summed = jax.jit(convolve)(jnp.ones(x.shape), jnp.ones(weight.shape)).sum()
    assert flops(convolve, x, weight) == 2 * int(summed)


def test_layers_that_convolve():
    def layer(module, channels):
        x = jnp.ones((2, 9, 8, channels))
        parameters = jax.eval_shape(module.init, jax.random.key(0), x)
        return flops(module.apply, parameters, x)

    valid = nn.Conv(5, (3, 2), padding="VALID")
    assert layer(valid, 4) == 2 * 2 * (7 * 7) * (3 * 2) * 4 * 5
    strided = nn.Conv(5, (3, 2), strides=(2, 3), padding="VALID")
    assert layer(strided, 4) == 2 * 2 * (4 * 3) * (3 * 2) * 4 * 5
    same = nn.Conv(5, (3, 3))  # each border leaves out one tap of three
    assert layer(same, 4) == 2 * 2 * (3 * 9 - 2) * (3 * 8 - 2) * 4 * 5
    depthwise = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4)
    assert layer(depthwise, 4) == 2 * 2 * (7 * 6) * (3 * 3) * 8
    transposed = nn.ConvTranspose(5, (3, 3), strides=(2, 2), padding="VALID")
    assert layer(transposed, 4) == 2 * 2 * (9 * 8) * (3 * 3) * 4 * 5  # each input meets each tap


# Control flow and calls


def lstm(weights, xs):
    """The sum of the last hidden state; `xs` is [T, B, I]."""
    to_gates, recurrent = weights

    def step(carry, x):
        hidden, cell = carry
        i, f, g, o = jnp.split(x @ to_gates + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    zeros = jnp.zeros((xs.shape[1], recurrent.shape[0]))
    return jax.lax.scan(step, (zeros, zeros), xs)[0][0].sum()


def test_scan_counts_every_step_and_its_gradient():
    steps, batch, inputs, width = 17, 3, 5, 4
    args = (array(inputs, 4 * width), array(width, 4 * width)), array(steps, batch, inputs)
    from_input = steps * 2 * batch * inputs * 4 * width
    from_state = steps * 2 * batch * width * 4 * width
    assert flops(lstm, *args) == from_input + from_state
    assert flops(jax.value_and_grad(lstm), *args) == 2 * from_input + 3 * from_state


def test_scan_of_a_flax_layer_counts_every_step():
    steps, batch, inputs, width = 17, 3, 5, 4
    layer, x = nn.RNN(nn.OptimizedLSTMCell(width)), jnp.ones((batch, steps, inputs))
    parameters = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert flops(layer.apply, parameters, x) == steps * 2 * batch * (inputs + width) * 4 * width


@jax.custom_vjp
def with_own_gradient(x):
    return x @ x


with_own_gradient.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))


@jax.custom_jvp
def with_own_tangent(x):
    return x @ x


with_own_tangent.defjvp(lambda x, t: (x[0] @ x[0], t[0]))


@pytest.mark.parametrize(
    "function",
    [
        jax.jit(jax.jit(lambda x: x @ x)),
        jax.checkpoint(lambda x: x @ x),
        with_own_gradient,
        with_own_tangent,
        lambda x: jax.lax.map(lambda row: row @ x, x),
        lambda x: jax.lax.cond(x[0, 0] > 0, jax.jit(lambda x: x @ x), lambda x: x[:2].sum() * x, x),
        lambda x: jax.lax.switch(1, [lambda x: x[:2] @ x, lambda x: (x @ x)[:2]], x),
        lambda x: jax.lax.custom_linear_solve(lambda y: x @ y, x, lambda _, b: x @ b),
        # Two halves on two devices.
        jax.shard_map(
            lambda x: x @ jax.lax.all_gather(x, "data", tiled=True),
            mesh=jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
        ),
    ],
    ids=["jit", "remat", "vjp", "jvp", "map", "cond", "switch", "linear solve", "shard_map"],
)
def test_calls_are_looked_into(function):
    assert flops(function, array(6, 6)) == 2 * 6**3


def test_vmap_counts_every_example():
    convolve, x, weight, expected = random_convolution(3)
    stacked = [array(5, *one.shape) for one in (x, weight)]
    assert flops(jax.vmap(convolve), *stacked) == 5 * expected
    assert flops(jax.vmap(jnp.dot), array(5, 2, 3), array(5, 3, 4)) == 5 * 2 * 2 * 3 * 4


def test_while_loop_is_refused_where_its_length_matters():
    def positive(x):
        return x[0, 0] > 0

    x = array(3, 3)
    with pytest.raises(ValueError, match="while loop, whose length is unknown"):
        count(lambda x: jax.lax.while_loop(positive, lambda x: x @ x, x), x)
    with pytest.raises(ValueError, match="while loop, whose length is unknown"):
        count(lambda x: jax.lax.while_loop(lambda x: positive(x @ x), lambda x: x - 1, x), x)
    assert flops(lambda x: jax.lax.while_loop(positive, lambda x: x - 1, x @ x), x) == 2 * 3**3
    assert flops(lambda x: jax.lax.fori_loop(0, 4, lambda _, x: x @ x, x), x) == 4 * 2 * 3**3


def test_hidden_products_are_refused():
    def kernel(x, out):
        out[...] = x[...] @ x[...]

    x = array(4, 4)
    hidden = [
        lambda x: pl.pallas_call(kernel, out_shape=x)(x),
        lambda x: jax.ffi.ffi_call("product", x)(x),
        lambda x: jax.lax.ragged_dot(x, jnp.ones((2, 4, 4)), jnp.array([1, 3])),
    ]
    for function in hidden:
        with pytest.raises(ValueError, match="cannot be counted"):
            count(function, x)


# Bytes


def test_bytes_are_inputs_and_outputs_once():
    closed_over = jnp.arange(6.0)

    def function(tree, key):
        noise = jax.random.normal(key, (6,))
        return {"half": (noise + closed_over).astype(jnp.bfloat16), "flags": tree["ids"] > 0}

    tree = {"ids": array(4, 5, dtype=jnp.int32), "scale": array(dtype=jnp.bfloat16)}
    key_bytes = math.prod(jax.random.key_data(jax.random.key(0)).shape) * 4
    expected = (4 * 5 * 4 + 2 + key_bytes + 6 * 4) + (6 * 2 + 4 * 5)
    assert count(function, tree, jax.random.key(0)) == Cost(flops=0, bytes=expected)
    assert count(jax.jit(function), tree, jax.random.key(0)).bytes == expected
