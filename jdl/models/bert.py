"""BERT: a bidirectional transformer encoder (Devlin et al., 2019)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, Dropout, check_length, check_sizes, exact_gelu, normalization, stack


class BERT(nn.Module):
    """Token, position and segment embeddings, post-norm blocks, and a head.

    Takes tokens (batch, time) int32 with time up to `max_position_embeddings`; `pad_token_id` is
    masked. With `num_classes` the head classifies a pooled vector: logits (batch, num_classes)
    float32, or with 0 classes that vector itself, (batch, embed_dim) float32. Pooled is the first
    position, through a dense layer and tanh, or the mean over all positions that are not padding,
    as in Sentence-BERT (Reimers and Gurevych, 2019). Without `num_classes`, it predicts masked
    tokens: logits (batch, time, vocab) float32, or (batch, n, vocab) at `mlm_positions`
    (batch, n) int32. With `targets` and `weights` of that shape, it returns the weighted sum of
    their cross-entropies in nats, a float32 scalar.
    """

    vocab_size: int = 8192  # number of tokens
    max_position_embeddings: int = 128  # maximum sequence length
    num_layers: int = 4  # blocks
    num_heads: int = 4  # heads of each attention
    embed_dim: int = 128  # size of token embeddings and of each position's state
    mlp_dim: int | None = None  # hidden units of the feed-forward networks; None: 4 * embed_dim
    type_vocab_size: int = 2  # segments, such as first and second sentence
    pad_token_id: int = 0  # the token that pads sequences; it is masked
    num_classes: int | None = None  # 0: pooled vectors; None: masked language model
    pool: Literal["first", "mean"] = "first"  # for classes: the first position, or mean over all
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the feed-forward networks
    epsilon: float = 1e-12  # of the normalization layers
    dropout_rate: float = 0.1  # for embeddings and the output of each sublayer
    remat: bool = False  # recompute activations in the backward pass, to save memory
    scan: bool = False  # stack the blocks' weights and scan over them, to compile faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        mlm_positions: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, pooled vectors, or the sum of cross-entropies; see the class."""
        check_sizes(self)
        check_length(tokens, self.max_position_embeddings)
        embed = nn.Embed(
            self.vocab_size, self.embed_dim, embedding_init=INIT, dtype=self.dtype, name="tokens"
        )
        x = self._encode(embed, tokens, token_type_ids, train)
        if self.num_classes is not None:
            pooled = self._pool(x, tokens != self.pad_token_id)
            if self.num_classes == 0:
                return pooled.astype(jnp.float32)
            pooled = Dropout(self.dropout_rate, deterministic=not train)(pooled)
            return self._dense(self.num_classes, "logits")(pooled).astype(jnp.float32)
        if mlm_positions is not None:
            x = jnp.take_along_axis(x, mlm_positions[..., None], axis=1)
        x = self.activation(self._dense(self.embed_dim, "transform")(x))
        x = normalization("layer", self.dtype, "transform_norm", self.epsilon)(x)
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        if targets is None:
            return (x @ embed.embedding.astype(self.dtype).T).astype(jnp.float32) + bias
        # The bias is a kernel column whose input is always 1: the op takes a kernel alone.
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
        kernel = jnp.concatenate([embed.embedding, bias[:, None]], -1)
        return ops.linear_cross_entropy(x, kernel, targets, weights)

    def _encode(
        self, embed: nn.Embed, tokens: jax.Array, token_type_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        """Returns the output of the last block, (batch, time, embed)."""
        places = self.param("positions", INIT, (self.max_position_embeddings, self.embed_dim))
        table = self.param("kinds", INIT, (self.type_vocab_size, self.embed_dim))
        kind = table[0] if token_type_ids is None else table[token_type_ids]
        x = embed(tokens) + (places[: tokens.shape[1]] + kind).astype(self.dtype)
        x = normalization("layer", self.dtype, "norm", self.epsilon)(x)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        block = partial(
            Block, num_heads=self.num_heads, mlp_dim=self.mlp_dim, activation=self.activation,
            pre_norm=False, epsilon=self.epsilon, dropout_rate=self.dropout_rate, dtype=self.dtype,
        )  # fmt: skip
        seen = (tokens != self.pad_token_id)[:, None, None, :]
        return stack(
            block, self.num_layers, x, remat=self.remat, scan=self.scan, mask=seen, train=train
        )

    def _pool(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Pools x (batch, time, embed) over positions that are `seen` (batch, time)."""
        if self.pool == "first":
            return nn.tanh(self._dense(self.embed_dim, "pooler")(x[:, 0]))
        total = jnp.sum(x, 1, dtype=jnp.float32, where=seen[..., None])
        return (total / jnp.maximum(seen.sum(1, keepdims=True), 1)).astype(self.dtype)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=INIT, dtype=self.dtype, name=name)


INIT = nn.initializers.normal(0.02)

BERTBase = partial(
    BERT, vocab_size=30_522, max_position_embeddings=512, num_layers=12, num_heads=12, embed_dim=768
)
"""109,482,240 parameters up to the pooler."""
BERTLarge = partial(
    BERT,
    vocab_size=30_522,
    max_position_embeddings=512,
    num_layers=24,
    num_heads=16,
    embed_dim=1024,
)
"""335,141,888 parameters up to the pooler."""
