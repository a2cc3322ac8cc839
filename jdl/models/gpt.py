"""GPT: a decoder-only transformer for language modeling (Radford et al., 2019)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import (
    Block,
    Dropout,
    check_length,
    check_sizes,
    normalization,
    segment_positions,
    sinusoidal,
    stack,
)


class GPT(nn.Module):
    """Token and position embeddings, pre-norm blocks, a final norm, and logits.

    Maps tokens (batch, time) int32, time up to `max_position_embeddings`, to logits (batch, time,
    vocab) float32. With `targets` and `weights` (batch, time), it returns the weighted sum of
    their cross-entropies in nats, a float32 scalar.

    `segments` (batch, time) int32 mark the documents packed into a row, which do not attend to
    each other. With `decode`, keys and values are read from and written to the collection `cache`
    at `positions` (batch or 1, time); the first such call creates it, as long as its tokens.
    """

    vocab_size: int = 65  # number of tokens
    max_position_embeddings: int = 64  # maximum sequence length
    num_layers: int = 4  # blocks
    num_heads: int = 4  # heads of each attention
    embed_dim: int = 128  # size of token embeddings and of each position's state
    num_kv_heads: int | None = None  # grouped queries; None: num_heads
    mlp_dim: int | None = None  # hidden units of the feed-forward networks; None: 4 * embed_dim
    position_embedding: Literal["learned", "sinusoidal", "rotary"] = (
        "learned"  # position embeddings
    )
    rotary_base: float = 10_000.0  # the longest period is about 2 pi times this
    norm: Literal["layer", "rms"] = "layer"  # layer or RMS normalization
    epsilon: float = 1e-5  # of the normalization layers
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # of the feed-forward networks
    gated: bool = False  # gated feed-forward networks: SwiGLU with silu
    use_bias: bool = True  # in dense layers
    tie_word_embeddings: bool = True  # logits by the token embedding (Press and Wolf, 2017)
    dropout_rate: float = 0.0  # for embeddings and the output of each sublayer
    remat: bool = False  # recompute activations in the backward pass, to save memory
    scan: bool = False  # stack the blocks' weights and scan over them, to compile faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """Returns logits, or with targets the sum of cross-entropies."""
        check_sizes(self)
        check_length(tokens, self.max_position_embeddings)
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            self.vocab_size, self.embed_dim, embedding_init=init, dtype=self.dtype, name="tokens"
        )
        kernel = embed.embedding
        if not self.tie_word_embeddings:
            kernel = self.param("logits", init, (self.vocab_size, self.embed_dim))
        mask = None
        if segments is not None:
            positions = segment_positions(segments)
            mask = segments[:, None, :, None] == segments[:, None, None, :]
        x = self._place(embed(tokens), positions)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        x = stack(
            self._block(), self.num_layers, x, remat=self.remat, scan=self.scan,
            mask=mask, positions=positions, train=train, decode=decode,
        )  # fmt: skip
        x = normalization(self.norm, self.dtype, "norm", self.epsilon)(x)
        if targets is None:
            return (x @ kernel.astype(self.dtype).T).astype(jnp.float32)
        return ops.linear_cross_entropy(x, kernel, targets, weights)

    def _place(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        """Adds position embeddings to x (batch, time, embed); rotary ones act in attention."""
        if self.position_embedding == "rotary":
            return x
        if self.position_embedding == "learned":
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, (self.max_position_embeddings, self.embed_dim))
        else:
            table = sinusoidal(jnp.arange(self.max_position_embeddings), self.embed_dim)
        places = table[: x.shape[1]] if positions is None else table[positions]
        return x + places.astype(self.dtype)

    def _block(self) -> Callable[..., Block]:
        return partial(
            Block,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            causal=True,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            gated=self.gated,
            norm=self.norm,
            epsilon=self.epsilon,
            rotary_base=self.rotary_base if self.position_embedding == "rotary" else None,
            use_bias=self.use_bias,
            dropout_rate=self.dropout_rate,
            # GPT-2: residual projections start smaller the more of them add up.
            output_stddev=0.02 * (2 * self.num_layers) ** -0.5,
            dtype=self.dtype,
        )


GPT2 = partial(
    GPT, vocab_size=50_257, max_position_embeddings=1024, num_layers=12, num_heads=12, embed_dim=768
)
"""GPT-2 small, 124,439,808 parameters."""
GPT2Medium = partial(GPT2, num_layers=24, num_heads=16, embed_dim=1024)
GPT2Large = partial(GPT2, num_layers=36, num_heads=20, embed_dim=1280)
GPT2XL = partial(GPT2, num_layers=48, num_heads=25, embed_dim=1600)
