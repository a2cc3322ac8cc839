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

WEIGHTS = "attention_weights"
"""Collection into which the layer sows `weights`, (batch, heads, time, keys), if it is mutable."""


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a `memory`.

    With `decode`, queries also attend to the keys and values of earlier calls. The collection
    `cache` holds those, (batch, length, num_kv_heads, depth); its length is the time of the call
    that creates it, and later calls write at their positions. Keys and values of a memory are
    computed by the creating call only.

    The joint kernel is ordered by groups of heads that share a key and a value: the queries of a
    group, its key, its value. A strategy can therefore shard it by groups.
    """

    num_heads: int  # query heads; a divisor of the input's size
    num_kv_heads: int | None = None  # grouped queries (Ainslie et al., 2023); None: num_heads
    causal: bool = False  # mask later positions
    rotary_base: float | None = None  # rotary position embedding (Su et al., 2021)
    use_bias: bool = True  # in the projections
    dropout_rate: float = 0.0  # of the output
    output_stddev: float = 0.02  # standard deviation of the initial output kernel
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
        """Applies attention and the output projection.

        Args:
          x: (batch, time, embed).
          memory: (batch, keys, memory_embed); None: `x` itself.
          mask: bool, True where a query attends to a key, broadcast to (batch, heads, time, keys).
          positions: (batch or 1, time) int32, for rotary embeddings. Required with `decode`, where
            they are consecutive and equal in all rows.
          train: whether dropout is active.
          decode: read and write the collection `cache`, or create it.

        Returns:
          (batch, time, embed).

        Raises:
          UserError: `num_heads` does not divide `embed`, or `num_kv_heads` `num_heads`.
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
        if self.is_mutable_collection(WEIGHTS) and not self.is_initializing():
            weights = _weights(query, key, causal, mask)
            self.sow(
                WEIGHTS, "weights", weights, reduce_fn=lambda _, new: new, init_fn=lambda: weights
            )
        x = ops.attention(query, key, value, causal=causal, mask=mask)
        output = self._dense(width, "output", nn.initializers.normal(self.output_stddev))
        x = output(x.reshape(batch, time, width))
        return Dropout(self.dropout_rate, deterministic=not train)(x)

    def _check(self, width: int) -> None:
        """Raises a UserError unless the heads divide the width, and the groups the heads."""
        heads, groups = (
            self.num_heads,
            self.num_heads if self.num_kv_heads is None else self.num_kv_heads,
        )
        if heads < 1 or width % heads:
            raise UserError(
                f"a width of {width} cannot be split into {heads} heads: set "
                f"model.num_heads to a divisor of model.embed_dim"
            )
        if groups < 1 or heads % groups:
            raise UserError(
                f"{heads} heads cannot share {groups} keys and values evenly: set "
                f"model.num_kv_heads to a divisor of model.num_heads"
            )
        if self.rotary_base is not None and width // heads % 2:
            raise UserError(
                f"rotary positions need an even head size, not {width // heads}: "
                f"set model.num_heads or model.embed_dim"
            )

    def _project(
        self, x: jax.Array, memory: jax.Array | None, decode: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (batch, time, heads, depth), keys and values (batch, keys, kv_heads, depth)."""
        groups, depth = self.num_kv_heads or self.num_heads, x.shape[-1] // self.num_heads
        repeats = self.num_heads // groups
        if memory is None:
            joint = self._dense((self.num_heads + 2 * groups) * depth, "qkv")(x)
            # (batch, time, groups, queries + key + value, depth)
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
        """Updates the cache; returns its keys, values and the mask (1, 1, time, keys)."""
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


def _weights(query: jax.Array, key: jax.Array, causal: bool, mask: jax.Array | None) -> jax.Array:
    """Returns the weights of attention, (batch, heads, time, keys) float32."""
    key = jnp.repeat(key, query.shape[2] // key.shape[2], 2)
    scores = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
    seen = jnp.ones(scores.shape[-2:], bool)
    seen = jnp.tril(seen) if causal else seen
    scores = scores * query.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(seen if mask is None else seen & mask, scores, -1e30))
