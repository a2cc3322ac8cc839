"""Networks that forecast every step of a horizon."""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.layers import Block, Dropout, normalization, sinusoidal, stack
from jdl.models.rnn import CELLS


class RecurrentEncoder(nn.Module):
    """Stacked recurrent layers, (batch, time, channels) to (batch, time, hidden_size)."""

    cell: Literal["simple", "lstm", "gru"] = "lstm"  # of the layers
    hidden_size: int = 64  # of each layer
    num_layers: int = 1  # recurrent layers
    dropout_rate: float = 0.0  # after each layer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layers."""
        for _ in range(self.num_layers):
            x = CELLS[self.cell](self.hidden_size, dtype=self.dtype)(x)
            x = Dropout(self.dropout_rate, deterministic=not train)(x)
        return x


class TemporalConvNet(nn.Module):
    """Dilated causal convolutions in residual blocks (Bai et al., 2018).

    Maps (batch, time, channels) to (batch, time, embed_dim). A step sees `1 + 2 (kernel_size - 1)
    (2 ** num_layers - 1)` steps up to its own.
    """

    embed_dim: int = 64  # channels of each layer
    kernel_size: int = 3  # of each convolution
    num_layers: int = 6  # residual blocks of two convolutions, with dilations 1, 2, 4, ...
    dropout_rate: float = 0.0  # after each convolution
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the blocks."""
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="embed")(x)
        for index in range(self.num_layers):
            hidden = x
            for half in range(2):
                hidden = nn.Conv(
                    self.embed_dim,
                    (self.kernel_size,),
                    padding="CAUSAL",
                    kernel_dilation=2**index,
                    dtype=self.dtype,
                    name=f"conv_{index}_{half}",
                )(nn.relu(hidden))
                hidden = Dropout(self.dropout_rate, deterministic=not train)(hidden)
            x = x + hidden
        return nn.relu(x)


class TransformerEncoder(nn.Module):
    """Transformer blocks over all steps, (batch, time, channels) to (batch, time, embed_dim)."""

    embed_dim: int = 64  # width
    num_layers: int = 2  # blocks
    num_heads: int = 4  # of the attention
    dropout_rate: float = 0.0  # of the output of each sublayer
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the blocks."""
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="embed")(x)
        x = x + sinusoidal(jnp.arange(x.shape[1]), self.embed_dim).astype(self.dtype)
        block = functools.partial(
            Block,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        x = stack(block, self.num_layers, x, train=train)
        return normalization("layer", self.dtype, "norm")(x)


class Forecaster(nn.Module):
    """An encoder over past and future steps, and a dense layer on those of the future.

    Maps the inputs of `jdl.data.Panel` to (batch, horizon, features) float32. In the future only
    what is known in advance is given: what is observed is 0 there, and a further channel tells the
    past from the future. The first forecast of every step is the last value, since the initial
    kernel of the last layer is 0.
    """

    encoder: nn.Module = RecurrentEncoder()  # (batch, time, channels) to (batch, time, width)
    features: int = 7  # outputs for each step
    lags: tuple[int, ...] = ()
    """Steps before each one of which the observed values are given to it too, at least the horizon
    (Salinas et al., 2020): such as a day."""

    dtype: Any = jnp.float32  # of the dense layer; parameters are float32

    @nn.compact
    def __call__(
        self, past: jax.Array, future: jax.Array, static: jax.Array, train: bool = False
    ) -> jax.Array:
        """Applies the model.

        Args:
          past: (batch, length, channels), the last of which are those of `future`.
          future: (batch, horizon, known channels).
          static: (batch, channels).
          train: whether dropout is active.
        """
        length, horizon = past.shape[1], future.shape[1]
        observed = past.shape[2] - future.shape[2]
        check_lags(self.lags, horizon)
        earlier = [shift(past[..., :observed], lag, horizon) for lag in (0, *self.lags)]
        known = jnp.concatenate([past[..., observed:], future], 1)
        is_future = (jnp.arange(length + horizon) >= length).astype(past.dtype)
        x = jnp.concatenate(
            [
                *earlier,
                known,
                jnp.broadcast_to(is_future[None, :, None], (*known.shape[:2], 1)),
                jnp.broadcast_to(static[:, None], (*known.shape[:2], static.shape[1])),
            ],
            2,
        )
        x = self.encoder(x, train)[:, length:]
        last = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="last"
        )
        return last(x).astype(jnp.float32)


def shift(x: jax.Array, lag: int, horizon: int) -> jax.Array:
    """Returns what x (batch, length, channels) was `lag` steps before each step.

    (batch, length + horizon, channels); 0 before the first and after the last step of x.
    """
    return jnp.pad(x, ((0, 0), (lag, horizon), (0, 0)))[:, : x.shape[1] + horizon]


def check_lags(lags: tuple[int, ...], horizon: int) -> None:
    """Raises a UserError if a lag is less than the horizon."""
    if lags and min(lags) < horizon:
        raise UserError(
            f"model.lags holds {min(lags)}, less than the horizon of {horizon}: values so late are "
            f"not known yet"
        )
