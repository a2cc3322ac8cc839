"""BERT: a transformer that reads in both directions (Devlin et al., 2019)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops
from jdl.layers import Block, Dropout, check_length, check_sizes, exact_gelu, normalisation, stack


class BERT(nn.Module):
    """Embeddings of tokens, places and kinds, blocks normed after, and a head.

    Takes tokens (batch, time) int32, time up to `context`, of which `padding` is seen by none.
    With `outputs`, the head classifies texts: logits (batch, outputs) float32 from the first place;
    with 0 of them it gives the vector (batch, width) float32 that logits are made of. Without, it
    tells masked tokens: logits (batch, time, vocabulary) float32, or (batch, n, vocabulary) at the
    `places` (batch, n) int32 that are given; given also `targets` and `weights` of that shape, the
    weighted sum of their cross-entropies in nats, a float32 scalar.
    """

    vocabulary: int = 8192  # tokens that there are
    context: int = 128  # longest sequence
    layers: int = 4  # blocks
    heads: int = 4  # of each attention
    width: int = 128  # of the sequence
    hidden: int | None = None  # units of the feed-forward networks; None: four times the width
    kinds: int = 2  # of tokens, such as those of a first and of a second sentence
    padding: int = 0  # the token that fills sequences up
    outputs: int | None = None  # classes of texts; 0: a vector of each; None: tell masked tokens
    activation: Callable[[jax.Array], jax.Array] = exact_gelu  # of the feed-forward networks
    epsilon: float = 1e-12  # of the norms
    dropout: float = 0.1  # share dropped of the embeddings and of each part of a block
    remat: bool = False  # compute activations again in the backward pass, to save memory
    scan: bool = False  # compile one block and loop over its weights: compiles faster
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        weights: jax.Array | None = None,
        places: jax.Array | None = None,
        kinds: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits, or with targets the sum of cross-entropies."""
        check_sizes(self, "vocabulary", "context", "layers", "heads", "width", "hidden", "kinds")
        check_length(tokens, self.context)
        embed = nn.Embed(
            self.vocabulary, self.width, embedding_init=INIT, dtype=self.dtype, name="tokens"
        )
        x = self._encode(embed, tokens, kinds, train)
        if self.outputs is not None:
            first = nn.tanh(self._dense(self.width, "pooler")(x[:, 0]))
            if self.outputs == 0:
                return first.astype(jnp.float32)
            first = Dropout(self.dropout, deterministic=not train)(first)
            return self._dense(self.outputs, "logits")(first).astype(jnp.float32)
        if places is not None:
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        x = self.activation(self._dense(self.width, "transform")(x))
        x = normalisation("layer", self.dtype, "transform_norm", self.epsilon)(x)
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        if targets is None:
            return (x @ embed.embedding.astype(self.dtype).T).astype(jnp.float32) + bias
        weights = jnp.ones(targets.shape) if weights is None else weights
        # The bias as one more weight of an input that is always one.
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
        kernel = jnp.concatenate([embed.embedding, bias[:, None]], -1)
        return ops.linear_cross_entropy(
            x.reshape(-1, self.width + 1), kernel, targets.reshape(-1), weights.reshape(-1)
        )

    def _encode(
        self, embed: nn.Embed, tokens: jax.Array, kinds: jax.Array | None, train: bool
    ) -> jax.Array:
        """The sequence after the last block, (batch, time, width)."""
        places = self.param("positions", INIT, (self.context, self.width))
        table = self.param("kinds", INIT, (self.kinds, self.width))
        kind = table[0] if kinds is None else table[kinds]
        x = embed(tokens) + (places[: tokens.shape[1]] + kind).astype(self.dtype)
        x = normalisation("layer", self.dtype, "norm", self.epsilon)(x)
        x = Dropout(self.dropout, deterministic=not train)(x)
        block = partial(
            Block, heads=self.heads, hidden=self.hidden, activation=self.activation,
            pre_norm=False, epsilon=self.epsilon, dropout=self.dropout, dtype=self.dtype,
        )  # fmt: skip
        seen = (tokens != self.padding)[:, None, None, :]
        return stack(
            block, self.layers, x, remat=self.remat, scan=self.scan, mask=seen, train=train
        )

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=INIT, dtype=self.dtype, name=name)


INIT = nn.initializers.normal(0.02)

BERTBase = partial(BERT, vocabulary=30_522, context=512, layers=12, heads=12, width=768)
"""109,482,240 parameters up to the pooler."""
BERTLarge = partial(BERT, vocabulary=30_522, context=512, layers=24, heads=16, width=1024)
"""335,141,888 parameters up to the pooler."""
