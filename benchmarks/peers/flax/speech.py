"""Convolutional encoder of speech, and the loss of connectionist temporal classification."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class SpeechEncoder(nn.Module):
    """Residual dilated convolutions; features and their mask to logits of each step."""

    num_classes: int  # labels, with the blank 0
    embed_dim: int  # channels
    kernel_size: int  # steps of a convolution
    dilations: tuple[int, ...]  # of each convolution
    stride: int  # frames of a step
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, audio: jax.Array, mask: jax.Array) -> jax.Array:
        """Applies the layers."""
        count, frames, _ = audio.shape
        kept = steps_mask(mask, self.stride)[..., None]
        x = (audio * mask[..., None]).reshape(count, frames // self.stride, -1)
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="embed")(x)
        for index, dilation in enumerate(self.dilations):
            y = nn.LayerNorm(dtype=self.dtype, name=f"norm_{index}")(x) * kept
            y = nn.Conv(
                self.embed_dim,
                (self.kernel_size,),
                kernel_dilation=dilation,
                dtype=self.dtype,
                name=f"conv_{index}",
            )(y)
            x += nn.Dense(self.embed_dim, dtype=self.dtype, name=f"mix_{index}")(nn.gelu(y))
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)


def steps_mask(mask: jax.Array, stride: int) -> jax.Array:
    """The mask of steps of `stride` frames."""
    return mask.reshape(len(mask), -1, stride).any(-1)


def ctc_loss(logits: jax.Array, batch: dict[str, Any]) -> jax.Array:
    """The mean loss over tokens, padded with 0."""
    stride = batch["audio"].shape[1] // logits.shape[1]
    padding = 1.0 - steps_mask(batch["audio_mask"], stride)
    tokens = batch["tokens"]
    losses = optax.ctc_loss(logits, padding, tokens, (tokens == 0).astype(jnp.float32))
    return losses.sum() / (tokens > 0).sum()
