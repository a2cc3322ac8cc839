"""GPT: a decoder-only transformer for language modelling (Radford et al., 2019)."""

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
    normalisation,
    segment_positions,
    sinusoidal,
    stack,
)


class GPT(nn.Module):
    """Token and position embeddings, blocks, a last norm, and logits by the token embedding.

    Takes tokens (batch, time) int32, time up to `context`, and gives logits (batch, time,
    vocabulary) float32; given also `targets` and `weights` (batch, time), the weighted sum of
    their cross-entropies in nats, a float32 scalar.

    With `segments` (batch, time) int32, several documents lie in a row, one after the other, and
    none sees another. With `decode` the call goes on from the collection `cache`, which a first
    such call makes, as long as its tokens; `positions` (batch or 1, time) then say where.
    """

    vocabulary: int = 65  # tokens that there are
    context: int = 64  # longest sequence
    layers: int = 4  # blocks
    heads: int = 4  # of each attention
    width: int = 128  # of the sequence
    kv_heads: int | None = None  # keys and values that heads share; None: one each
    hidden: int | None = None  # units of the feed-forward networks; None: four times the width
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"  # how places are told
    rotary_base: float = 10_000.0  # periods of rotary positions grow up to 2 pi times this
    norm: Literal["layer", "rms"] = "layer"  # kind of normalisation
    epsilon: float = 1e-5  # of the norms
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # of the feed-forward networks
    gated: bool = False  # multiply by the activation: SwiGLU with silu
    bias: bool = True  # in dense layers
    tied: bool = True  # logits by the token embedding (Press and Wolf, 2017)
    dropout: float = 0.0  # share dropped of the embeddings and of each part of a block
    remat: bool = False  # compute activations again in the backward pass, to save memory
    scan: bool = False  # compile one block and loop over its weights: compiles faster
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
        """Logits, or with targets the sum of cross-entropies."""
        check_sizes(self, "vocabulary", "context", "layers", "heads", "kv_heads", "width", "hidden")
        check_length(tokens, self.context)
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="tokens"
        )
        kernel = embed.embedding
        if not self.tied:
            kernel = self.param("logits", init, (self.vocabulary, self.width))
        mask = None
        if segments is not None:
            positions = segment_positions(segments)
            mask = segments[:, None, :, None] == segments[:, None, None, :]
        x = self._place(embed(tokens), positions)
        x = Dropout(self.dropout, deterministic=not train)(x)
        x = stack(
            self._block(), self.layers, x, remat=self.remat, scan=self.scan,
            mask=mask, positions=positions, train=train, decode=decode,
        )  # fmt: skip
        x = normalisation(self.norm, self.dtype, "norm", self.epsilon)(x)
        if targets is None:
            return (x @ kernel.astype(self.dtype).T).astype(jnp.float32)
        weights = jnp.ones(targets.shape) if weights is None else weights
        return ops.linear_cross_entropy(
            x.reshape(-1, self.width), kernel, targets.reshape(-1), weights.reshape(-1)
        )

    def _place(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        """Adds an embedding of the positions; rotary ones act in attention."""
        if self.positions == "rotary":
            return x
        if self.positions == "learned":
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, (self.context, self.width))
        else:
            table = sinusoidal(jnp.arange(self.context), self.width)
        places = table[: x.shape[1]] if positions is None else table[positions]
        return x + places.astype(self.dtype)

    def _block(self) -> Callable[..., Block]:
        return partial(
            Block,
            heads=self.heads,
            kv_heads=self.kv_heads,
            causal=True,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            norm=self.norm,
            epsilon=self.epsilon,
            rotary_base=self.rotary_base if self.positions == "rotary" else None,
            bias=self.bias,
            dropout=self.dropout,
            # Kernels that write to the sequence begin smaller the more of them there are.
            output_stddev=0.02 * (2 * self.layers) ** -0.5,
            dtype=self.dtype,
        )


GPT2 = partial(GPT, vocabulary=50_257, context=1024, layers=12, heads=12, width=768)
"""GPT-2 small, 124,439,808 parameters."""
GPT2Medium = partial(GPT2, layers=24, heads=16, width=1024)
GPT2Large = partial(GPT2, layers=36, heads=20, width=1280)
GPT2XL = partial(GPT2, layers=48, heads=25, width=1600)
