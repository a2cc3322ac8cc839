"""A recurrent network that forecasts each step of a horizon from the one before."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.layers import Dropout
from jdl.layers.recurrent import State
from jdl.models.forecaster import check_lags, shift
from jdl.models.rnn import CELLS


class DeepAR(nn.Module):
    """Stacked recurrent layers over past and horizon, which read the value before each step.

    Salinas et al. (2020), for the inputs of `jdl.data.Panel`. Maps these and the true values of the
    horizon to (batch, horizon, features) float32: two parameters of a distribution for each target,
    of each step given all values before it. To forecast, `jdl.tasks.AutoregressiveForecast` calls
    `encode` once and `decode` step by step, with the values that it draws. The `past` covariates
    are 0 from the second step of the horizon on, where they are not known.
    """

    cell: Literal["simple", "lstm", "gru"] = "lstm"  # of the layers
    hidden_size: int = 64  # of each layer
    num_layers: int = 1  # recurrent layers
    features: int = 2  # outputs for each step: two for each target
    lags: tuple[int, ...] = ()  # see `Forecaster.lags`
    dropout_rate: float = 0.0  # after each layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Creates the layers."""
        layer = CELLS[self.cell]
        self.layers = [layer(self.hidden_size, dtype=self.dtype) for _ in range(self.num_layers)]
        self.drop = Dropout(self.dropout_rate)
        zeros = nn.initializers.zeros
        self.last = nn.Dense(self.features, dtype=self.dtype, kernel_init=zeros)

    def __call__(
        self,
        past: jax.Array,
        future: jax.Array,
        static: jax.Array,
        y: jax.Array,
        observed: jax.Array,
        train: bool = False,
    ) -> jax.Array:
        """Applies the model to known values (teacher forcing).

        Args:
          past, future, static: see `encode`.
          y: values of the horizon, (batch, horizon, targets).
          observed: whether these are known, of the same shape.
          train: whether dropout is active.
        """
        if self.features != 2 * y.shape[2]:
            raise UserError(
                f"model.features is {self.features}, where {y.shape[2]} targets have two parameters"
                f" each: set it to {2 * y.shape[2]}"
            )
        states, previous, known = self.encode(past, future, static, train)
        values = jnp.concatenate([y, observed.astype(y.dtype)], 2)
        before = jnp.concatenate([previous, values[:, :-1]], 1)
        return self.decode(states, before, known, train)[0]

    def encode(
        self, past: jax.Array, future: jax.Array, static: jax.Array, train: bool = False
    ) -> tuple[tuple[State, ...], jax.Array, jax.Array]:
        """Reads the past.

        Args:
          past: (batch, length, channels), the last of which are those of `future`.
          future: (batch, horizon, known channels).
          static: (batch, channels).
          train: whether dropout is active.

        Returns:
          states: of the layers after the past, but for its last values.
          previous: these, (batch, 1, 2 * targets): values, and whether they are observed.
          known: what else is given at each step of the horizon, (batch, horizon, channels).
        """
        length, horizon = past.shape[1], future.shape[1]
        check_lags(self.lags, horizon)
        observed = past[..., : past.shape[2] - future.shape[2]]
        values, covariates = observed[..., : self.features], observed[..., self.features :]
        parts = [
            shift(covariates, 1, horizon),
            *(shift(observed, lag, horizon) for lag in self.lags),
            jnp.concatenate([past[..., observed.shape[2] :], future], 1),
            jnp.broadcast_to(static[:, None], (len(past), length + horizon, static.shape[1])),
        ]
        known = jnp.concatenate(parts, 2)
        states = tuple(layer.initial_state(len(past)) for layer in self.layers)
        _, states = self._unroll(states, values[:, :-1], known[:, 1:length], train)
        return states, values[:, -1:], known[:, length:]

    def decode(
        self,
        states: tuple[State, ...],
        before: jax.Array,
        known: jax.Array,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[State, ...]]:
        """Forecasts one or several steps.

        Args:
          states: of the layers.
          before: values before each step, and whether they are observed, (batch, steps, 2 *
            targets).
          known: what else is given at each step, (batch, steps, channels).
          train: whether dropout is active.

        Returns:
          Outputs (batch, steps, features) float32, and the states after the steps.
        """
        x, states = self._unroll(states, before, known, train)
        return self.last(x).astype(jnp.float32), states

    def _unroll(
        self, states: tuple[State, ...], before: jax.Array, known: jax.Array, train: bool
    ) -> tuple[jax.Array, tuple[State, ...]]:
        x, found = jnp.concatenate([before, known], 2), []
        for layer, state in zip(self.layers, states, strict=True):
            x, last = layer.unroll(x, state)
            x = self.drop(x, deterministic=not train)
            found.append(last)
        return x, tuple(found)
