"""Multi-head attention as a layer (Vaswani et al., 2017, section 3.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.errors import UserError
from jdl.layers.dropout import Dropout
from jdl.layers.position import rotary
from jdl.state import CACHE


class Attention(nn.Module):
    """Attention of a sequence (batch, time, width) to itself, or to a `memory` of another width.

    In `decode` the keys and values of earlier calls are seen too: the collection `cache` holds
    them, (batch, length, num_kv_heads, depth), and a call writes its own at its positions. Its
    length is the time of the call that makes it. Of a memory, keys and values are computed by that
    call.

    The joint kernel holds, for each group of heads that share a key and a value, its queries, its
    key and its value, so that a strategy may split it among devices by groups.
    """

    num_heads: int  # the width is shared out among them
    num_kv_heads: int | None = None  # that heads share (Ainslie et al., 2023); None: one each
    causal: bool = False  # a position sees none after it
    rotary_base: float | None = None  # turn queries and keys by their positions (Su et al., 2021)
    use_bias: bool = True  # in the projections
    dropout_rate: float = 0.0  # share of the output dropped in training
    output_stddev: float = 0.02  # of the initial output kernel
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        memory: jax.Array | None = None,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """(batch, time, width).

        Args:
          x: (batch, time, width).
          memory: (batch, keys, width of the memory); none: `x` itself.
          mask: True where attention may go, broadcast to (batch, heads, time, keys).
          positions: (batch or 1, time) int32, for rotary embeddings; in `decode` they are needed,
            and follow one another from the first, which all rows share.
          train: whether dropout is on.
          decode: go on from the collection `cache`, or make it.

        Raises:
          UserError: the width cannot be shared out among the heads as they are to be.
        """
        batch, time, width = x.shape
        self._check(width)
        if positions is None:
            positions = jnp.arange(time)[None]
        query, key, value = self._project(x, memory, decode)
        if self.rotary_base is not None:
            query, key = (rotary(y, positions, self.rotary_base) for y in (query, key))
        causal = self.causal
        if decode and memory is None:
            key, value, seen = self._remember(key, value, positions)
            mask, causal = seen if mask is None else seen & mask, False
        x = ops.attention(query, key, value, causal=causal, mask=mask)
        output = self._dense(width, "output", nn.initializers.normal(self.output_stddev))
        x = output(x.reshape(batch, time, width))
        return Dropout(self.dropout_rate, deterministic=not train)(x)

    def _check(self, width: int) -> None:
        """Raises a UserError for heads that do not go into the width, or groups into the heads."""
        heads, groups = (
            self.num_heads,
            self.num_heads if self.num_kv_heads is None else self.num_kv_heads,
        )
        if heads < 1 or width % heads:
            raise UserError(
                f"a width of {width} cannot be shared out among {heads} heads: set "
                f"model.num_heads to a divisor of model.embed_dim"
            )
        if groups < 1 or heads % groups:
            raise UserError(
                f"{heads} heads cannot share {groups} keys and values evenly: set "
                f"model.num_kv_heads to a divisor of model.num_heads"
            )
        if self.rotary_base is not None and width // heads % 2:
            raise UserError(
                f"rotary positions turn pairs of components, and {width // heads} in a head are an "
                f"odd number: set model.num_heads or model.embed_dim"
            )

    def _project(
        self, x: jax.Array, memory: jax.Array | None, decode: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (batch, time, heads, depth), keys and values (batch, keys, kv_heads, depth)."""
        groups, depth = self.num_kv_heads or self.num_heads, x.shape[-1] // self.num_heads
        repeats = self.num_heads // groups
        if memory is None:
            joint = self._dense((self.num_heads + 2 * groups) * depth, "qkv")(x)
            joint = joint.reshape(*x.shape[:2], groups, repeats + 2, depth)
            query = joint[..., :repeats, :].reshape(*x.shape[:2], self.num_heads, depth)
            return query, joint[..., repeats, :], joint[..., repeats + 1, :]
        query = self._dense(self.num_heads * depth, "query")(x)
        query = query.reshape(*x.shape[:2], self.num_heads, depth)
        if decode and self.has_variable(CACHE, "key"):
            return query, self.get_variable(CACHE, "key"), self.get_variable(CACHE, "value")
        joint = self._dense(2 * groups * depth, "kv")(memory)
        joint = joint.reshape(*memory.shape[:2], groups, 2, depth)
        key, value = joint[..., 0, :], joint[..., 1, :]
        if decode:
            self.put_variable(CACHE, "key", key)
            self.put_variable(CACHE, "value", value)
        return query, key, value

    def _remember(
        self, key: jax.Array, value: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All keys and values so far, and which of them each query sees, (1, 1, time, keys)."""
        if self.has_variable(CACHE, "key"):
            at = (0, positions[0, 0], 0, 0)
            key, value = (
                jax.lax.dynamic_update_slice(self.get_variable(CACHE, name), new, at)
                for name, new in (("key", key), ("value", value))
            )
        self.put_variable(CACHE, "key", key)
        self.put_variable(CACHE, "value", value)
        return key, value, (jnp.arange(key.shape[1]) <= positions[0][:, None])[None, None]

    def _dense(self, features: int, name: str, init: Any = None) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            kernel_init=init or nn.initializers.normal(0.02),
            dtype=self.dtype,
            dot_general=ops.dot_general,
            name=name,
        )
