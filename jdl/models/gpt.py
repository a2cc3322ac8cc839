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

    vocab_size: int = 65  # tokens that there are
    max_position_embeddings: int = 64  # longest sequence
    num_layers: int = 4  # blocks
    num_heads: int = 4  # of each attention
    embed_dim: int = 128  # of the sequence
    num_kv_heads: int | None = None  # keys and values that heads share; None: one each
    mlp_dim: int | None = None  # units of the feed-forward networks; None: four times the width
    position_embedding: Literal["learned", "sinusoidal", "rotary"] = (
        "learned"  # how places are told
    )
    rotary_base: float = 10_000.0  # periods of rotary positions grow up to 2 pi times this
    norm: Literal["layer", "rms"] = "layer"  # kind of normalisation
    epsilon: float = 1e-5  # of the norms
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # of the feed-forward networks
    gated: bool = False  # multiply by the activation: SwiGLU with silu
    use_bias: bool = True  # in dense layers
    tie_word_embeddings: bool = True  # logits by the token embedding (Press and Wolf, 2017)
    dropout_rate: float = 0.0  # share dropped of the embeddings and of each part of a block
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
        check_sizes(
            self,
            "vocab_size",
            "max_position_embeddings",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "embed_dim",
            "mlp_dim",
        )
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
        x = normalisation(self.norm, self.dtype, "norm", self.epsilon)(x)
        if targets is None:
            return (x @ kernel.astype(self.dtype).T).astype(jnp.float32)
        weights = jnp.ones(targets.shape) if weights is None else weights
        return ops.linear_cross_entropy(
            x.reshape(-1, self.embed_dim), kernel, targets.reshape(-1), weights.reshape(-1)
        )

    def _place(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        """Adds an embedding of the positions; rotary ones act in attention."""
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
            # Kernels that write to the sequence begin smaller the more of them there are.
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
