"""Convolutional encoder of speech for CTC, of whole sounds or chunk by chunk."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.layers import Dropout


class SpeechEncoder(nn.Module):
    """Residual dilated convolutions over time (Collobert et al., 2016; Oord et al., 2016).

    Maps features `audio` (batch, frames, bands) with `audio_mask` (batch, frames), False for
    padding at the end, to logits (batch, steps, num_classes) float32 and their mask (batch, steps)
    bool, where a step stands for `stride` frames. Logits do not depend on padding.

    A `causal` encoder sees `lookahead` steps of what follows, and no more. It can be applied to
    chunks of whole steps in turn: with `stream=True`, and the mutable collection `cache`, it gives
    the logits of steps that are `lookahead` earlier, so that the first `lookahead` ones are of
    nothing; zeros flush the last ones out.
    """

    num_classes: int = 11  # labels, with the blank 0
    embed_dim: int = 128  # channels
    kernel_size: int = 5  # steps of a convolution
    dilations: tuple[int, ...] = (1, 1, 2, 2, 4)  # of each convolution
    stride: int = 4  # frames of a step
    causal: bool = False  # whether steps depend on no later ones beyond `lookahead`
    lookahead: int = 0  # steps, of a causal encoder
    dropout_rate: float = 0.0  # behind each convolution
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self, audio: jax.Array, audio_mask: jax.Array, train: bool = False, stream: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the model."""
        if self.lookahead and not self.causal:
            raise UserError("SpeechEncoder.lookahead is of a causal one: set causal, or 0")
        if stream and not self.causal:
            raise UserError("SpeechEncoder streams only if it is causal: set model.causal")
        batch, frames, bands = audio.shape
        mask = audio_mask[..., None]
        x = jnp.where(mask, audio, 0)
        extra = -frames % self.stride + (0 if stream else self.lookahead * self.stride)
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)))
        steps = -(-frames // self.stride)
        padded = jnp.pad(audio_mask, ((0, 0), (0, -frames % self.stride)))
        kept = padded.reshape(batch, steps, self.stride).any(-1)
        x = x.reshape(batch, -1, self.stride * bands)  # (batch, steps + lookahead, frames x bands)
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="embed")(x)
        for index, dilation in enumerate(self.dilations):
            y = nn.LayerNorm(dtype=self.dtype, name=f"norm_{index}")(x)
            # A causal encoder needs no mask: what follows a sound changes nothing within.
            y = y if self.causal else jnp.where(kept[..., None], y, 0)
            x = x + self._branch(self._with_past(y, index, dilation, stream), index, train)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        if not stream:
            logits = logits[:, self.lookahead :]
        return logits.astype(jnp.float32), kept

    def _with_past(self, x: jax.Array, index: int, dilation: int, stream: bool) -> jax.Array:
        """Returns (batch, steps, channels) with the steps around them that a convolution reads."""
        reach = (self.kernel_size - 1) * dilation
        if not self.causal:
            return jnp.pad(x, ((0, 0), (reach // 2, reach - reach // 2), (0, 0)))
        if not stream:
            return jnp.pad(x, ((0, 0), (reach, 0), (0, 0)))
        shape = (len(x), reach, x.shape[2])
        past = self.variable("cache", f"past_{index}", jnp.zeros, shape, x.dtype)
        x = jnp.concatenate([past.value, x], 1)
        past.value = x[:, x.shape[1] - reach :]
        return x

    def _branch(self, x: jax.Array, index: int, train: bool) -> jax.Array:
        """Applies a convolution, an activation and a dense layer."""
        convolution = nn.Conv(
            self.embed_dim,
            (self.kernel_size,),
            kernel_dilation=self.dilations[index],
            padding="VALID",
            dtype=self.dtype,
            name=f"conv_{index}",
        )
        x = Dropout(self.dropout_rate, deterministic=not train)(nn.gelu(convolution(x)))
        return nn.Dense(self.embed_dim, dtype=self.dtype, name=f"mix_{index}")(x)
