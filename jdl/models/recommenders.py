"""Networks that score all items for a user."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.layers import Block, Dropout, normalization, stack


class MatrixFactorization(nn.Module):
    """Products of user and item embeddings, and a bias of each item (Koren et al., 2009).

    Maps users (batch,) to scores (batch, num_items + 1) float32 of the items from 0, the padding.
    """

    num_users: int  # largest user
    num_items: int  # largest item
    embed_dim: int = 64  # of users and items
    dropout_rate: float = 0.0  # of the user's embedding

    @nn.compact
    def __call__(self, user: jax.Array, history: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model; the history is not read."""
        del history
        init = nn.initializers.normal(0.05)
        x = nn.Embed(self.num_users + 1, self.embed_dim, embedding_init=init, name="users")(user)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        items = self.param("items", init, (self.num_items + 1, self.embed_dim))
        bias = self.param("bias", nn.initializers.zeros, (self.num_items + 1,))
        return (x @ items.T + bias).astype(jnp.float32)


class NeuMF(nn.Module):
    """Weighted product of embeddings, and an MLP on further ones (He et al., 2017).

    Maps users (batch,) to scores (batch, num_items + 1) float32 of the items from 0, the padding.
    """

    num_users: int  # largest user
    num_items: int  # largest item
    embed_dim: int = 16  # of users and items, for the product and for the MLP
    widths: tuple[int, ...] = (32, 16, 8)  # hidden units of the MLP
    dropout_rate: float = 0.0  # of the embeddings
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, user: jax.Array, history: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model; the history is not read."""
        del history
        init, every = nn.initializers.normal(0.05), jnp.arange(self.num_items + 1)

        def embed(name: str, count: int, ids: jax.Array) -> jax.Array:
            x = nn.Embed(count + 1, self.embed_dim, embedding_init=init, name=name)(ids)
            return Dropout(self.dropout_rate, deterministic=not train)(x).astype(self.dtype)

        users, items = embed("users", self.num_users, user), embed("items", self.num_items, every)
        weights = self.param("product", nn.initializers.ones, (self.embed_dim,))
        product = (users * weights.astype(self.dtype)) @ items.T
        # The first layer on a pair is a sum of what it makes of the user and of the item.
        of_user = nn.Dense(self.widths[0], dtype=self.dtype, name="mlp_user")(
            embed("mlp_users", self.num_users, user)
        )
        of_item = nn.Dense(self.widths[0], use_bias=False, dtype=self.dtype, name="mlp_item")(
            embed("mlp_items", self.num_items, every)
        )
        x = nn.relu(of_user[:, None] + of_item[None])  # (batch, items, width)
        for width in self.widths[1:]:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        bias = self.param("bias", nn.initializers.zeros, (self.num_items + 1,))
        return (product + nn.Dense(1, dtype=self.dtype)(x)[..., 0] + bias).astype(jnp.float32)


class SASRec(nn.Module):
    """Causal transformer over the items chosen before (Kang and McAuley, 2018).

    Maps histories (batch, length), padded with 0 at the front, to scores (batch, num_items + 1)
    float32: products of the last state and the item embeddings.
    """

    num_items: int  # largest item
    embed_dim: int = 64  # width
    num_layers: int = 2  # blocks
    num_heads: int = 2  # of the attention
    mlp_dim: int | None = None  # hidden units; None: 4 * embed_dim
    dropout_rate: float = 0.2  # of embeddings and sublayers
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, user: jax.Array, history: jax.Array, train: bool = False) -> jax.Array:
        """Applies the model; the user is not read."""
        del user
        init, length = nn.initializers.normal(0.02), history.shape[1]
        items = self.param("items", init, (self.num_items + 1, self.embed_dim))
        places = self.param("positions", init, (length, self.embed_dim))
        x = (self.embed(history, items) * self.embed_dim**0.5 + places).astype(self.dtype)
        x = Dropout(self.dropout_rate, deterministic=not train)(x)
        # A padded step attends to itself, so that no row of the attention is empty.
        real = (history > 0)[:, None, None, :] | jnp.eye(length, dtype=bool)[None, None]
        block = functools.partial(
            Block,
            num_heads=self.num_heads,
            causal=True,
            mlp_dim=self.mlp_dim,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        x = stack(block, self.num_layers, x, mask=real, train=train)
        x = normalization("layer", self.dtype, "norm")(x[:, -1])
        bias = self.param("bias", nn.initializers.zeros, (self.num_items + 1,))
        return (x @ items.T.astype(self.dtype) + bias).astype(jnp.float32)

    def embed(self, history: jax.Array, items: jax.Array) -> jax.Array:
        """Looks items up in their table, (batch, length, embed); explanations are made here."""
        return items[history]
