"""The transformer with an encoder and a decoder (Vaswani et al., 2017)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, Dropout, check_length, check_sizes, normalisation, sinusoidal, stack


class EncoderDecoder(nn.Module):
    """An encoder reads a sequence in both directions, a decoder writes another from left to right.

    Takes a source (batch, keys) and tokens (batch, time), both int32 and up to `context` long, and
    gives logits (batch, time, vocabulary) float32; given also `targets` and `weights` (batch,
    time), the weighted sum of their cross-entropies in nats, a float32 scalar. Places of the source
    that hold `padding` are seen by none. Both sides and the logits share one embedding, scaled by
    the root of the width where it is read; places are told by sinusoids.
    """

    vocabulary: int = 8192  # tokens that there are, of both languages
    context: int = 256  # longest sequence
    layers: int = 3  # blocks of the encoder, and of the decoder
    heads: int = 4  # of each attention
    width: int = 256  # of the sequences
    hidden: int | None = None  # units of the feed-forward networks; None: four times the width
    padding: int = 0  # the token that fills sequences up
    pre_norm: bool = True  # norm before each part of a block, not after it as in the paper
    dropout: float = 0.1  # share dropped of the embeddings and of each part of a block
    remat: bool = False  # compute activations again in the backward pass, to save memory
    scan: bool = False  # compile one block and loop over its weights: compiles faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    def setup(self) -> None:
        """Names the parts."""
        check_sizes(self, "vocabulary", "context", "layers", "heads", "width", "hidden")
        init = nn.initializers.normal(self.width**-0.5)
        self.embedding = self.param("embedding", init, (self.vocabulary, self.width))
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
        """Logits, or with targets the sum of cross-entropies, their labels smoothed."""
        x = self._decoded(tokens, self.encode(source, train), source, train=train)
        if targets is None:
            return self._logits(x)
        weights = jnp.ones(targets.shape) if weights is None else weights
        return ops.linear_cross_entropy(
            x.reshape(-1, self.width), self.embedding, targets.reshape(-1), weights.reshape(-1),
            smoothing=smoothing,
        )  # fmt: skip

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """The source (batch, keys) as a memory (batch, keys, width)."""
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
        """Logits (batch, time, vocabulary) of tokens, given what `encode` made of the source.

        With `decode` the call goes on from the collection `cache`, which a first such call makes,
        as long as its tokens; `positions` (batch or 1, time) then say where.
        """
        return self._logits(self._decoded(tokens, memory, source, positions, decode=decode))

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
        check_length(tokens, self.context)
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        x = self.embedding[tokens] * self.width**0.5 + sinusoidal(positions, self.width)
        return x.astype(self.dtype)

    def _seen(self, source: jax.Array) -> jax.Array:
        return (source != self.padding)[:, None, None, :]

    def _logits(self, x: jax.Array) -> jax.Array:
        return (x @ self.embedding.astype(self.dtype).T).astype(jnp.float32)

    def _side(self, cross: bool) -> "_Side":
        block = partial(
            Block,
            heads=self.heads,
            causal=cross,
            cross=cross,
            hidden=self.hidden,
            activation=nn.relu,
            pre_norm=self.pre_norm,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        return _Side(
            block, self.layers, self.pre_norm, self.dropout, self.remat, self.scan, self.dtype
        )


class _Side(nn.Module):
    """Dropout, blocks, and a last norm where blocks norm before."""

    block: Callable[..., Block]  # makes a block
    layers: int  # how many of them
    last_norm: bool  # norm what the last block gives
    dropout: float  # share of the embeddings dropped in training
    remat: bool  # compute activations again in the backward pass
    scan: bool  # compile one block and loop over its weights
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, **inputs: Any) -> jax.Array:
        x = Dropout(self.dropout, deterministic=not train)(x)
        x = stack(
            self.block, self.layers, x, remat=self.remat, scan=self.scan, train=train, **inputs
        )
        return normalisation("layer", self.dtype, "norm")(x) if self.last_norm else x


TransformerBase = partial(
    EncoderDecoder, vocabulary=37_000, layers=6, heads=8, width=512, pre_norm=False
)
"""The base model of the paper, 63,082,496 parameters."""
TransformerBig = partial(
    EncoderDecoder, vocabulary=37_000, layers=6, heads=16, width=1024, pre_norm=False, dropout=0.3
)
"""The big model of the paper."""
