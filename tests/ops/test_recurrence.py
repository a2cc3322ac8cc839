"""Recurrent layers equal a scan over their step, and PyTorch's, and respect masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import ops
from jdl.analysis import flops
from jdl.layers import GRU, LSTM, Bidirectional, SimpleRNN
from jdl.models import RNN
from jdl.models.rnn import CELLS
from jdl.ops import onednn, recurrence

SHAPES = [(1, 1, 1), (7, 3, 5), (12, 2, 16)]  # time, batch, units


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def scanned_lstm(projected, h, c, kernel):
    def step(carry, z):
        h, c = ops.lstm_step(z, *carry, kernel)
        return (h, c), h

    (_, c), hs = jax.lax.scan(step, (h, c), projected)
    return hs, c


def scanned_gru(projected, h, kernel, bias):
    def step(h, z):
        h = ops.gru_step(z, h, kernel, bias)
        return h, h

    return jax.lax.scan(step, h, projected)[1]


def lstm_arguments(seed, time, batch, units):
    return draw(seed, (time, batch, 4 * units), (batch, units), (batch, units), (units, 4 * units))


def gru_arguments(seed, time, batch, units):
    return draw(seed, (time, batch, 3 * units), (batch, units), (units, 3 * units), (units,))


CASES = {
    "lstm": (ops.lstm, scanned_lstm, lstm_arguments),
    "gru": (ops.gru, scanned_gru, gru_arguments),
}


def weighed(function, arguments):
    """A scalar in which every output counts differently."""
    outputs = jax.tree.leaves(function(*arguments))
    weights = draw(9, *[leaf.shape for leaf in outputs])
    return sum((jnp.sin(leaf) * w).sum() for leaf, w in zip(outputs, weights, strict=True))


def gradient(function):
    """The gradient of `weighed`, compiled."""
    return jax.jit(jax.grad(lambda arguments: weighed(function, arguments)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_those_of_a_scan_over_the_step(name, shape):
    function, plain, make = CASES[name]
    arguments = make(0, *shape)
    chex.assert_trees_all_close(
        jax.jit(function)(*arguments), jax.jit(plain)(*arguments), rtol=1e-5, atol=1e-6
    )
    found, expected = (gradient(f)(arguments) for f in (function, plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_finite_differences(name):
    function, _, make = CASES[name]
    arguments = make(1, 3, 2, 2)
    jax.test_util.check_grads(
        jax.jit(lambda *a: weighed(function, a)),
        arguments,
        order=1,
        modes=["rev"],
        eps=1e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("name", CASES)
def test_under_vmap_each_sequence_is_its_own(name):
    function, _, make = CASES[name]
    several = [make(seed, 4, 2, 3) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    one = gradient(function)
    together = jax.jit(jax.vmap(one))(stacked)
    for i, arguments in enumerate(several):
        alone = one(arguments)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_results_stay_near(name):
    function, plain, make = CASES[name]
    arguments = make(2, 5, 4, 8)
    half = [x.astype(jnp.bfloat16) for x in arguments]
    for found, expected in zip(
        jax.tree.leaves(jax.jit(function)(*half)),
        jax.tree.leaves(jax.jit(plain)(*arguments)),
        strict=True,
    ):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.1)


def test_forward_mode_is_refused():
    arguments = lstm_arguments(0, 2, 1, 2)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ops.lstm, arguments, arguments)
    assert "scan over `lstm_step`" in (ops.lstm.__doc__ or "")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_equal_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    units, features = 6, 5
    (x,) = draw(3, (2, 9, features))
    layer = {"lstm": LSTM, "gru": GRU}[kind](units)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    params = {k: np.asarray(v) for k, v in variables["params"].items()}
    peer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](features, units, batch_first=True)
    # torch's order of gates: input, forget, candidate, output; reset, update, candidate.
    order = [0, 1, 3, 2] if kind == "lstm" else [0, 1, 2]

    def reordered(array):
        parts = np.split(array, len(order), axis=-1)
        return torch.tensor(np.concatenate([parts[i] for i in order], axis=-1).T)

    recurrent_bias = torch.zeros(len(order) * units)
    if kind == "gru":
        recurrent_bias[2 * units :] = torch.tensor(params["recurrent_bias"])
    with torch.no_grad():
        peer.weight_ih_l0.copy_(reordered(params["kernel"]))
        peer.weight_hh_l0.copy_(reordered(params["recurrent"]))
        peer.bias_ih_l0.copy_(reordered(params["bias"]))
        peer.bias_hh_l0.copy_(recurrent_bias)
        expected = peer(torch.tensor(np.asarray(x)))[0].numpy()
    found = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [LSTM(4), GRU(4)])
def test_no_output_depends_on_a_later_input(layer):
    (x,) = draw(4, (1, 6, 3))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    influence = jax.jit(jax.jacobian(lambda x: layer.apply(variables, x).sum((0, 2))))(x)[:, 0]
    reaches = np.abs(influence).sum(-1) > 0  # (output time, input time)
    np.testing.assert_array_equal(reaches, np.tri(6, dtype=bool))


def test_a_simple_layer_is_torchs():
    torch = pytest.importorskip("torch")
    (x,) = draw(3, (2, 6, 4))
    layer = SimpleRNN(5)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    params["bias"] = draw(4, (5,))[0]
    theirs = torch.nn.RNN(4, 5, batch_first=True)
    given = (params["kernel"].T, params["recurrent"].T, params["bias"], jnp.zeros(5))
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), (torch.tensor(np.array(v)) for v in given), strict=True))
    )
    expected = theirs(torch.tensor(np.array(x)))[0].detach().numpy()
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru"])
def test_each_direction_sees_its_side_and_the_last_states_see_all(cell):
    kind = CELLS[cell]
    (x,) = draw(5, (1, 6, 3))
    layer = Bidirectional(kind(4), kind(4))
    params = jax.jit(layer.init)(jax.random.key(0), x)

    # Of the state at a step, the half of one direction: which steps of the input it depends on.
    gradients = jax.jit(jax.jacrev(lambda x: layer.apply(params, x)[0]))(x)[:, :, 0]
    reach = np.abs(gradients.reshape(6, 2, 4, 6, 3)).sum((2, 4)) > 0
    np.testing.assert_array_equal(reach[:, 0], np.tri(6, dtype=bool))
    np.testing.assert_array_equal(reach[:, 1], np.tri(6, dtype=bool).T)
    model = RNN(vocab_size=0, hidden_size=4, cell=cell, bidirectional=True, num_layers=2)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    run = jax.jit(lambda x: model.apply(variables, x))
    slope = jax.jit(jax.grad(lambda x: run(x).sum()))(x)
    assert (np.abs(slope[0]).sum(-1) > 0).all()
    assert not np.allclose(run(x[:, ::-1]), run(x))
    last = variables["params"]["logits"]["kernel"]
    assert last.shape == (8, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_library_runs_the_same_lstm(shape, monkeypatch):
    """Values and gradients; and it is called where a program is for one CPU, else it is not."""
    if onednn.library() is None:
        pytest.skip("needs the extra `onednn` and a C++ compiler")
    monkeypatch.setattr(recurrence, "LEAST", 1)
    arguments = lstm_arguments(2, *shape)

    compiled = gradient(ops.lstm)
    for target in (onednn.LSTM, onednn.LSTM_GRADIENT):
        assert target in compiled.lower(arguments).as_text()
        assert target not in compiled.trace(arguments).lower(lowering_platforms=("tpu",)).as_text()
    expected = gradient(scanned_lstm)(arguments)
    chex.assert_trees_all_close(compiled(arguments), expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
        jax.jit(ops.lstm)(*arguments), jax.jit(scanned_lstm)(*arguments), rtol=1e-5, atol=1e-6
    )
    stacked = [jnp.stack([x, 0.5 * x]) for x in arguments]
    chex.assert_trees_all_close(
        *(jax.jit(jax.vmap(f))(*stacked) for f in (ops.lstm, scanned_lstm)), rtol=1e-5, atol=1e-6
    )
    exported = jax.export.export(jax.jit(ops.lstm))(*arguments)
    assert onednn.LSTM not in exported.mlir_module()
    costs = [flops.count(gradient(f), arguments).flops for f in (ops.lstm, scanned_lstm)]
    assert costs[0] == costs[1]
