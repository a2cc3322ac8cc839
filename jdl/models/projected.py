"""An encoder with a projector behind it, for losses of embeddings."""

import flax.linen as nn
import jax


class Projected(nn.Module):
    """An encoder, and a projector of its features, of which the loss is computed.

    Features before the projector are better than those behind it (Chen et al., 2020, section 4.2),
    so the task `Embedding` predicts what `encode` returns. Both parts are called as `part(x,
    train)` and return (batch, features).
    """

    encoder: nn.Module  # such as a CNN, whose num_classes is the number of features
    projector: nn.Module  # such as an MLP

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns projected features, (batch, features) float32."""
        return self.projector(nn.relu(self.encode(x, train)), train)

    def encode(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns features, (batch, features) float32."""
        return self.encoder(x, train)
