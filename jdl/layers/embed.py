"""Embeddings."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl import ops


class Embed(nn.Module):
    """A table of vectors: ids of any shape, int32, to (*shape, features)."""

    rows: int  # ids that there are
    features: int  # of each vector
    stddev: float = 0.05  # of the initial values, normal
    dtype: Any = jnp.float32  # of the result; the table is float32

    def setup(self) -> None:
        """Makes the table."""
        self.table = self.param(
            "embedding", nn.initializers.normal(self.stddev), (self.rows, self.features)
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The vectors of the ids."""
        return ops.embedding(self.table, ids).astype(self.dtype)
