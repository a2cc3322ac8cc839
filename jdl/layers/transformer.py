"""The transformer's body: self-attention and a position-wise network (Vaswani et al., 2017)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence (batch, time, width) to itself."""

    heads: int  # the width is shared out among them
    causal: bool = True  # a position sees none after it
    dropout: float = 0.0  # share of the output dropped in training
    output_stddev: float = 0.02  # of the initial output kernel
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """(batch, time, width); `mask` (batch, 1, time, time) is True where attention may go."""
        batch, time, width = x.shape
        dense = {"dtype": self.dtype, "dot_general": ops.dot_general}
        joint = nn.Dense(3 * width, kernel_init=nn.initializers.normal(0.02), name="qkv", **dense)
        query, key, value = jnp.split(joint(x), 3, axis=-1)
        shape = (batch, time, self.heads, width // self.heads)
        x = ops.attention(
            query.reshape(shape), key.reshape(shape), value.reshape(shape),
            causal=self.causal, mask=mask,
        )  # fmt: skip
        init = nn.initializers.normal(self.output_stddev)
        x = nn.Dense(width, kernel_init=init, name="output", **dense)(x.reshape(batch, time, width))
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Block(nn.Module):
    """Attention, then two dense layers with a GELU between; each normed before and added after.

    The pre-norm form of Radford et al. (2019), section 2.3.
    """

    heads: int  # of the attention
    causal: bool = True  # a position sees none after it
    expansion: int = 4  # width of the inner dense layer over that of the sequence
    dropout: float = 0.0  # share of each part's output dropped in training
    output_stddev: float = 0.02  # of the initial kernels that write to the sequence
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        dense = {"dtype": self.dtype, "dot_general": ops.dot_general}
        attention = SelfAttention(
            self.heads, self.causal, self.dropout, self.output_stddev, self.dtype, name="attention"
        )
        x = x + attention(layer_norm(self.dtype, "norm1")(x), train, mask)
        inner = nn.Dense(
            self.expansion * width,
            kernel_init=nn.initializers.normal(0.02),
            name="inner",
            **dense,
        )
        init = nn.initializers.normal(self.output_stddev)
        outer = nn.Dense(width, kernel_init=init, name="outer", **dense)
        hidden = outer(nn.gelu(inner(layer_norm(self.dtype, "norm2")(x))))
        return x + nn.Dropout(self.dropout, deterministic=not train)(hidden)


def layer_norm(dtype: Any, name: str) -> nn.Module:
    """Layer normalisation with statistics in float32 (Ba et al., 2016)."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
