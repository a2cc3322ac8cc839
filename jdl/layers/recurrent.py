"""Recurrent layers over sequences, from a zero or a given initial state."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.typing import Size

State = tuple[jax.Array, ...]
"""Recurrent state, (batch, hidden_size) each: the hidden state, in an LSTM also the cell state."""


class SimpleRNN(nn.Module):
    """Elman network (Elman, 1990), (batch, time, features) to (batch, time, hidden_size).

    Initialized as in Keras: Glorot uniform and orthogonal.
    """

    hidden_size: int = 128  # of the hidden state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the hidden state of each step, from a zero initial state."""
        return self.unroll(x, self.initial_state(x.shape[0]))[0]

    def initial_state(self, batch: Size) -> State:
        """Returns the zero state of a batch."""
        return (jnp.zeros((batch, self.hidden_size), self.dtype),)

    @nn.compact
    def unroll(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Returns hidden states (batch, time, hidden_size) after `state`, and the final state."""
        projected, outer = _project(self, x, 1)

        def step(h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(z + h @ outer)
            return h, h

        last, hidden = jax.lax.scan(step, state[0], projected)
        return jnp.swapaxes(hidden, 0, 1), (last,)


class LSTM(nn.Module):
    """Long short-term memory, (batch, time, features) to (batch, time, hidden_size).

    One kernel holds the input, forget and output gates, then the candidate. Initialized as in
    Keras: Glorot uniform, orthogonal, and a forget bias of 1.
    """

    hidden_size: int = 128  # of the hidden and of the cell state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the hidden state of each step, from a zero initial state."""
        return self.unroll(x, self.initial_state(x.shape[0]))[0]

    def initial_state(self, batch: Size) -> State:
        """Returns the zero state of a batch."""
        shape = (batch, self.hidden_size)
        return jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)

    @nn.compact
    def unroll(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Returns hidden states (batch, time, hidden_size) after `state`, and the final state."""
        projected, outer = _project(self, x, 4, _forget_bias)
        hidden, cell = ops.lstm(projected, *state, outer)
        return jnp.swapaxes(hidden, 0, 1), (hidden[-1], cell)


class GRU(nn.Module):
    """Gated recurrent unit, (batch, time, features) to (batch, time, hidden_size).

    One kernel holds the reset and update gates, then the candidate.
    """

    hidden_size: int = 128  # of the hidden state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the hidden state of each step, from a zero initial state."""
        return self.unroll(x, self.initial_state(x.shape[0]))[0]

    def initial_state(self, batch: Size) -> State:
        """Returns the zero state of a batch."""
        return (jnp.zeros((batch, self.hidden_size), self.dtype),)

    @nn.compact
    def unroll(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Returns hidden states (batch, time, hidden_size) after `state`, and the final state."""
        projected, outer = _project(self, x, 3)
        bias = self.param("recurrent_bias", nn.initializers.zeros, (self.hidden_size,))
        hidden = ops.gru(projected, *state, outer, bias.astype(self.dtype))
        return jnp.swapaxes(hidden, 0, 1), (hidden[-1],)


class Bidirectional(nn.Module):
    """Runs one layer forward and one backward in time (Schuster and Paliwal, 1997).

    Concatenates their outputs step by step, (batch, time, 2 * hidden_size).
    """

    forward: nn.Module
    backward: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the hidden states of each step, forward then backward."""
        return jnp.concatenate([self.forward(x), self.backward(x[:, ::-1])[:, ::-1]], axis=-1)


def _project(
    layer: Any, x: jax.Array, gates: int, bias_init: Any = nn.initializers.zeros
) -> tuple[jax.Array, Any]:
    """Creates a layer's parameters and projects its inputs, (batch, time, features), at once.

    Returns:
      The projections (time, batch, gates * hidden_size), and the recurrent kernel.
    """
    units = gates * layer.hidden_size
    inner = layer.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], units))
    outer = layer.param("recurrent", nn.initializers.orthogonal(), (layer.hidden_size, units))
    bias = layer.param("bias", bias_init, (units,))
    # Time first: each step of the scan then reads contiguous memory.
    x = jnp.swapaxes(x, 0, 1).astype(layer.dtype)
    dense = (((2,), (0,)), ((), ()))
    projected = ops.dot_general(x, inner.astype(layer.dtype), dense) + bias.astype(layer.dtype)
    return projected, outer.astype(layer.dtype)


def _forget_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros, and ones for the forget gate (Jozefowicz et al., 2015)."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)
