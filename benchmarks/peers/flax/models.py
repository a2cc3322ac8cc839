"""Networks other than transformers, as in Flax's examples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with relu between; uint8 images (batch, ...) to logits (batch, outputs)."""

    widths: tuple[int, ...]  # units of each hidden layer
    features: int  # size of the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.reshape(image.shape[0], -1).astype(jnp.float32) / 255
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x)


class CNN(nn.Module):
    """Convolutions, each with relu and a pool, then dense layers; uint8 images to logits."""

    channels: tuple[int, ...]  # of each convolution
    dense: tuple[int, ...]  # units of each hidden dense layer
    num_classes: int  # size of the output
    padding: str  # of the convolutions
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(jnp.float32) / 255
        for channels in self.channels:
            x = nn.Conv(channels, (3, 3), padding=self.padding, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)


class NormedConv(nn.Module):
    """A convolution without bias, and batch norm."""

    channels: int  # of the output
    size: int  # of the kernel's sides
    strides: int  # of the convolution, along height and width
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both."""
        sides, pad = (self.size, self.size), self.size // 2
        options = {"padding": pad, "use_bias": False, "dtype": self.dtype}
        x = nn.Conv(self.channels, sides, self.strides, **options)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)


class Bottleneck(nn.Module):
    """Three convolutions, the second strided, with a residual connection."""

    channels: int  # of the bottleneck; the output has four times as many
    strides: int  # of the convolution, along height and width
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers."""
        y = nn.relu(NormedConv(self.channels, 1, 1, self.dtype, name="conv0")(x))
        y = nn.relu(NormedConv(self.channels, 3, self.strides, self.dtype, name="conv1")(y))
        y = NormedConv(4 * self.channels, 1, 1, self.dtype, name="conv2")(y)
        if x.shape != y.shape:
            x = NormedConv(4 * self.channels, 1, self.strides, self.dtype, name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of bottlenecks ("v1.5"); uint8 images to logits."""

    stage_sizes: tuple[int, ...]  # blocks of each stage
    num_filters: int  # channels of the first stage
    num_classes: int  # size of the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(jnp.float32) / 255
        x = nn.relu(NormedConv(self.num_filters, 7, 2, self.dtype, name="stem")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                strides, name = 2 if i and not j else 1, f"stage{i}_block{j}"
                x = Bottleneck(self.num_filters << i, strides, self.dtype, name=name)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x.mean((1, 2)))


class SmallResNet(nn.Module):
    """A residual network for small images, its shortcuts padded; uint8 images to logits."""

    stage_sizes: tuple[int, ...]  # blocks of each stage
    num_filters: int  # channels of the first stage
    num_classes: int  # size of the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(jnp.float32) / 255
        x = nn.relu(NormedConv(self.num_filters, 3, 1, self.dtype, name="stem")(x))
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                strides, channels = 2 if i and not j else 1, self.num_filters << i
                name = f"stage{i}_block{j}"
                x = Basic(channels, strides, self.dtype, name=name)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x.mean((1, 2)))


class Basic(nn.Module):
    """Two convolutions, the first strided, with a residual connection."""

    channels: int  # of the output
    strides: int  # of the first convolution, along height and width
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers."""
        y = nn.relu(NormedConv(self.channels, 3, self.strides, self.dtype, name="conv0")(x))
        y = NormedConv(self.channels, 3, 1, self.dtype, name="conv1")(y)
        x = x[:, :: self.strides, :: self.strides]
        return nn.relu(y + jnp.pad(x, ((0, 0),) * 3 + ((0, y.shape[-1] - x.shape[-1]),)))


class RNN(nn.Module):
    """Embedding, recurrent layer, dense layer on its last state; tokens (batch, time) to logits."""

    vocab_size: int  # number of token ids
    embed_dim: int  # size of token embeddings
    hidden_size: int  # of the recurrent layer
    cell: str  # lstm or gru
    features: int  # size of the output
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = nn.Embed(self.vocab_size, self.embed_dim, dtype=self.dtype)(tokens)
        kind = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[self.cell]
        x = nn.RNN(kind(self.hidden_size, dtype=self.dtype, name=f"{self.cell.upper()}_0"))(x)[
            :, -1
        ]
        return nn.Dense(self.features, dtype=self.dtype, name="logits")(x)


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, logits; tokens (batch, time) to (..., vocabulary)."""

    vocab_size: int  # shared by source and target
    hidden_size: int  # of the embedding and of each layer
    num_layers: int  # recurrent layers
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = nn.Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, name="tokens")(tokens)
        for i in range(self.num_layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.hidden_size, dtype=self.dtype, name=f"LSTM_{i}"))(
                x
            )
        return nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype, name="logits")(x)
