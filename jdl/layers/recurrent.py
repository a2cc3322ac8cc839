"""Recurrent layers: over a sequence from a state of zeros, or on from one that is given."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.typing import Size

State = tuple[jax.Array, ...]
"""What a layer remembers, each (batch, units): the hidden state, of an LSTM also the cell's."""


class SimpleRNN(nn.Module):
    """tanh of the input's and the last state's products, (batch, time, features) to (..., units).

    Elman (1990), initialised as in Keras: Glorot uniform and orthogonal.
    """

    hidden_size: int = 128  # of the hidden state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """The hidden state after each step; it begins as zero."""
        return self.resume(x, self.zero(x.shape[0]))[0]

    def zero(self, batch: Size) -> State:
        """The state that sequences begin with."""
        return (jnp.zeros((batch, self.hidden_size), self.dtype),)

    @nn.compact
    def resume(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """The hidden state after each step from `state` on, and the last state."""
        shape = (x.shape[-1], self.hidden_size)
        inner = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        outer = self.param(
            "recurrent", nn.initializers.orthogonal(), (self.hidden_size, self.hidden_size)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.hidden_size,))
        x = jnp.swapaxes(x, 0, 1).astype(self.dtype)
        projected = x @ inner.astype(self.dtype) + bias.astype(self.dtype)
        outer = outer.astype(self.dtype)

        def step(h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(z + h @ outer)
            return h, h

        last, hidden = jax.lax.scan(step, state[0], projected)
        return jnp.swapaxes(hidden, 0, 1), (last,)


class LSTM(nn.Module):
    """A long short-term memory over (batch, time, features), giving (batch, time, units).

    One kernel holds the gates for input, forgetting and output, then the candidate. Initialised
    as in Keras: Glorot uniform, orthogonal, and a bias of 1 for forgetting.
    """

    hidden_size: int = 128  # of the hidden and of the cell state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """The hidden state after each step; it begins as zero."""
        return self.resume(x, self.zero(x.shape[0]))[0]

    def zero(self, batch: Size) -> State:
        """The state that sequences begin with."""
        shape = (batch, self.hidden_size)
        return jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)

    @nn.compact
    def resume(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """The hidden state after each step from `state` on, and the last state."""
        units = self.hidden_size
        features = x.shape[-1]
        inner = self.param("kernel", nn.initializers.glorot_uniform(), (features, 4 * units))
        outer = self.param("recurrent", nn.initializers.orthogonal(), (units, 4 * units))
        bias = self.param("bias", _forget_bias, (4 * units,))
        # Time first: each step then reads one stretch of memory.
        x = jnp.swapaxes(x, 0, 1).astype(self.dtype)
        projected = x @ inner.astype(self.dtype) + bias.astype(self.dtype)
        hidden, cell = ops.lstm(projected, *state, outer.astype(self.dtype))
        return jnp.swapaxes(hidden, 0, 1), (hidden[-1], cell)


class GRU(nn.Module):
    """A gated recurrent unit over (batch, time, features), giving (batch, time, units).

    One kernel holds the gates for reset and update, then the candidate.
    """

    hidden_size: int = 128  # of the hidden state
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """The hidden state after each step; it begins as zero."""
        return self.resume(x, self.zero(x.shape[0]))[0]

    def zero(self, batch: Size) -> State:
        """The state that sequences begin with."""
        return (jnp.zeros((batch, self.hidden_size), self.dtype),)

    @nn.compact
    def resume(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """The hidden state after each step from `state` on, and the last state."""
        units = self.hidden_size
        features = x.shape[-1]
        inner = self.param("kernel", nn.initializers.glorot_uniform(), (features, 3 * units))
        outer = self.param("recurrent", nn.initializers.orthogonal(), (units, 3 * units))
        bias = self.param("bias", nn.initializers.zeros, (3 * units,))
        recurrent_bias = self.param("recurrent_bias", nn.initializers.zeros, (units,))
        x = jnp.swapaxes(x, 0, 1).astype(self.dtype)
        projected = x @ inner.astype(self.dtype) + bias.astype(self.dtype)
        hidden = ops.gru(
            projected, *state, outer.astype(self.dtype), recurrent_bias.astype(self.dtype)
        )
        return jnp.swapaxes(hidden, 0, 1), (hidden[-1],)


class Bidirectional(nn.Module):
    """Two recurrent layers, of which one reads backwards (Schuster and Paliwal, 1997).

    Gives the states of both side by side, (batch, time, 2 units); those of each step stand where
    its input stood.
    """

    forward: nn.Module
    backward: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The hidden states after each step, forward then backward."""
        return jnp.concatenate([self.forward(x), self.backward(x[:, ::-1])[:, ::-1]], axis=-1)


def _forget_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros, and ones for the forget gate (Jozefowicz et al., 2015)."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)
