"""GPT: a decoder-only transformer for language modelling (Radford et al., 2019)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, layer_norm


class GPT(nn.Module):
    """Token and position embeddings, blocks, a last norm, and logits by the token embedding.

    Takes tokens (batch, time) int32, time up to `context`, and gives logits (batch, time,
    vocabulary) float32; given also `targets` and `weights` (batch, time), the weighted sum of
    their cross-entropies in nats, a float32 scalar.
    """

    vocabulary: int = 65  # tokens that there are
    context: int = 64  # longest sequence
    layers: int = 4  # blocks
    heads: int = 4  # of each attention
    width: int = 128  # of the sequence
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
        train: bool = False,
    ) -> jax.Array:
        """Logits, or with targets the sum of cross-entropies."""
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="tokens"
        )
        positions = self.param("positions", init, (self.context, self.width))
        x = embed(tokens) + positions[: tokens.shape[1]].astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = self._blocks(x, train)
        x = layer_norm(self.dtype, "norm")(x)
        if targets is None:
            return embed.attend(x).astype(jnp.float32)
        weights = jnp.ones(targets.shape) if weights is None else weights
        return ops.linear_cross_entropy(
            x.reshape(-1, self.width), embed.embedding, targets.reshape(-1), weights.reshape(-1)
        )

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        # Kernels that write to the sequence begin smaller the more of them there are.
        options: dict[str, Any] = {
            "heads": self.heads,
            "dropout": self.dropout,
            "output_stddev": 0.02 * (2 * self.layers) ** -0.5,
            "dtype": self.dtype,
        }
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        if not self.scan:
            for i in range(self.layers):
                x = block(**options, name=f"block_{i}")(x, train)
            return x

        def body(layer: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x, train), None

        looped = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
            # Rolled loops are slow on CPUs.
            unroll=self.layers if jax.default_backend() == "cpu" else 1,
        )
        return looped(block(**options, name="blocks"), x, None)[0]


GPT2 = partial(GPT, vocabulary=50_304, context=1024, layers=12, heads=12, width=768)
"""GPT-2 small, 124M parameters; the vocabulary of 50,257 padded to a multiple of 128."""
