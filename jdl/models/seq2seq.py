"""The encoder-decoder transformer (Vaswani et al., 2017)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, Dropout, check_length, check_sizes, normalization, sinusoidal, stack


class EncoderDecoder(nn.Module):
    """A bidirectional encoder and an autoregressive decoder with cross-attention.

    Maps a source (batch, keys) and tokens (batch, time), int32 and up to `max_position_embeddings`
    long, to logits (batch, time, vocab) float32. With `targets` and `weights` (batch, time), it
    returns the weighted sum of their cross-entropies in nats, a float32 scalar. `pad_token_id` is
    masked in the source. Both sides and the logits share one embedding, multiplied by
    sqrt(embed_dim) at the input, with sinusoidal positions.
    """

    vocab_size: int = 8192  # shared by source and target
    max_position_embeddings: int = 256  # maximum sequence length
    num_layers: int = 3  # blocks of the encoder, and of the decoder
    num_heads: int = 4  # heads of each attention
    embed_dim: int = 256  # size of token embeddings and of each position's state
    mlp_dim: int | None = None  # hidden units of the feed-forward networks; None: 4 * embed_dim
    pad_token_id: int = 0  # the token that pads sequences; it is masked
    pre_norm: bool = True  # normalize before each sublayer, not after it as in the paper
    dropout_rate: float = 0.1  # for embeddings and the output of each sublayer
    remat: bool = False  # recompute activations in the backward pass, to save memory
    scan: bool = False  # stack the blocks' weights and scan over them, to compile faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Creates the submodules."""
        check_sizes(self)
        init = nn.initializers.normal(self.embed_dim**-0.5)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.embed_dim))
        self.encoder = self._side(cross=False)
        self.decoder = self._side(cross=True)

    def __call__(
        self,
        source: jax.Array,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        smoothing: float = 0.0,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, or with targets the sum of label-smoothed cross-entropies."""
        x = self._decoded(tokens, self.encode(source, train), source, train=train)
        if targets is None:
            return self._logits(x)
        return ops.linear_cross_entropy(x, self.embedding, targets, weights, smoothing)

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """Encodes a source (batch, keys) to a memory (batch, keys, embed)."""
        x = self._embed(source, None)
        return self.encoder(x, mask=self._seen(source), train=train)

    def decode(
        self,
        tokens: jax.Array,
        memory: jax.Array,
        source: jax.Array,
        positions: jax.Array | None = None,
        decode: bool = False,
    ) -> jax.Array:
        """Returns logits (batch, time, vocab) of tokens, given the encoded source.

        With `decode`, keys and values are read from and written to the collection `cache` at
        `positions` (batch or 1, time); the first such call creates it, as long as its tokens.
        """
        return self._logits(self._decoded(tokens, memory, source, positions, decode=decode))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the embeddings of tokens, (batch, time, embed)."""
        return self.embedding[tokens]

    def _decoded(
        self,
        tokens: jax.Array,
        memory: jax.Array,
        source: jax.Array,
        positions: jax.Array | None = None,
        **modes: bool,
    ) -> jax.Array:
        x = self._embed(tokens, positions)
        return self.decoder(
            x, memory=memory, memory_mask=self._seen(source), positions=positions, **modes
        )

    def _embed(self, tokens: jax.Array, positions: jax.Array | None) -> jax.Array:
        check_length(tokens, self.max_position_embeddings)
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        x = self.embed(tokens) * self.embed_dim**0.5 + sinusoidal(positions, self.embed_dim)
        return x.astype(self.dtype)

    def _seen(self, source: jax.Array) -> jax.Array:
        return (source != self.pad_token_id)[:, None, None, :]

    def _logits(self, x: jax.Array) -> jax.Array:
        return (x @ self.embedding.astype(self.dtype).T).astype(jnp.float32)

    def _side(self, cross: bool) -> "_Side":
        block = partial(
            Block,
            num_heads=self.num_heads,
            causal=cross,
            cross=cross,
            mlp_dim=self.mlp_dim,
            activation=nn.relu,
            pre_norm=self.pre_norm,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        return _Side(
            block,
            self.num_layers,
            self.pre_norm,
            self.dropout_rate,
            self.remat,
            self.scan,
            self.dtype,
        )


class _Side(nn.Module):
    """Dropout, blocks, and a final norm if the blocks are pre-norm."""

    block: Callable[..., Block]  # builds a block
    num_layers: int  # number of blocks
    last_norm: bool  # normalize the output of the last block
    dropout_rate: float  # for embeddings
    remat: bool  # recompute activations in the backward pass
    scan: bool  # compile one block and loop over its weights
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, **inputs: Any) -> jax.Array:
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        x = stack(
            self.block, self.num_layers, x, remat=self.remat, scan=self.scan, train=train, **inputs
        )
        return normalization("layer", self.dtype, "norm")(x) if self.last_norm else x


TransformerBase = partial(
    EncoderDecoder, vocab_size=37_000, num_layers=6, num_heads=8, embed_dim=512, pre_norm=False
)
"""The base model of the paper, 63,082,496 parameters."""
TransformerBig = partial(
    EncoderDecoder,
    vocab_size=37_000,
    num_layers=6,
    num_heads=16,
    embed_dim=1024,
    pre_norm=False,
    dropout_rate=0.3,
)
"""The big model of the paper."""
