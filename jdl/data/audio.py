"""Transforms from sounds to features: of one length, as mel spectra, with parts masked."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio import MelSpectrogram
from jdl.errors import UserError
from jdl.typing import Batch, Keys

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class FixLength:
    """Host: brings sounds to `size` samples, and adds a mask of those that are not padding.

    `audio` becomes (size,), and `audio_mask` is (size,) bool. Zeros are added at the end; of a
    longer sound the loudest `size` samples in a row are kept. Where nothing may be cut off, such as
    what is transcribed, use `Pad`.
    """

    size: int = field(kw_only=False)  # samples
    name: str = "audio"  # of the array (samples,)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"FixLength needs a size of at least 1, not {self.size}")

    def __call__(self, example: Any) -> dict[str, Any]:
        """Returns the example with the sound cut or padded."""
        x = np.asarray(example[self.name])
        count = min(len(x), self.size)
        if len(x) > self.size:
            energy = np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64))])
            start = int(np.argmax(energy[self.size :] - energy[: -self.size]))
            x = x[start : start + self.size]
        mask = np.arange(self.size) < count
        return {
            **example,
            self.name: np.pad(x, (0, self.size - count)),
            f"{self.name}_mask": mask,
        }


@dataclass(frozen=True, kw_only=True)
class AudioFeatures:
    """Device: replaces sounds (batch, samples) by features (batch, frames, bands) float32.

    Sounds are int16, or float32 from -1 to 1. Of a batch with `audio_mask` (batch, samples), frames
    beyond the end of a sound are 0, and the mask becomes (batch, frames), so that neither features
    nor what a masked model makes of them depend on the padding.
    """

    spectrogram: MelSpectrogram = MelSpectrogram()  # the mel spectra
    kind: Literal["log_mel", "mfcc"] = "log_mel"  # natural logarithms, or cepstral coefficients
    num_coefficients: int = 20  # of `mfcc`
    normalize: bool = True  # each sound to mean 0 and variance 1 over its frames and bands
    channel_axis: bool = False  # (batch, frames, bands, 1), as images
    name: str = "audio"  # of the array

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with features.

        Raises:
          UserError: the array does not hold sounds.
        """
        del keys
        waves, mask = sounds(batch, self.name)
        if self.kind == "mfcc":
            x = self.spectrogram.mfcc(waves, self.num_coefficients)
        else:
            x = self.spectrogram.log_mel(waves)
        counts = self.spectrogram.frames(mask.sum(-1))
        kept = jnp.arange(x.shape[1]) < counts[:, None]
        if self.normalize:
            x = _normalized(x, kept)
        x = jnp.where(kept[..., None], x, 0)
        x = x[..., None] if self.channel_axis else x
        return {**batch, self.name: x, f"{self.name}_mask": kept}


def sounds(batch: Batch, name: str) -> tuple[Array, Array]:
    """Returns sounds (batch, samples) as float32 from -1 to 1, and their mask of that shape.

    Raises:
      UserError: the array does not hold sounds.
    """
    x = batch[name]
    if x.ndim != 2 or x.dtype not in (jnp.int16, jnp.float32):
        raise UserError(
            f"{name!r} has shape {x.shape} and dtype {x.dtype}, where sounds are (batch, samples) "
            f"int16 or float32"
        )
    mask = batch.get(f"{name}_mask")
    mask = jnp.ones(x.shape, bool) if mask is None else mask
    return (x.astype(jnp.float32) / 32768 if x.dtype == jnp.int16 else x), mask


def _normalized(x: Array, kept: Array) -> Array:
    """Returns features (batch, frames, bands) with mean 0 and variance 1 in each sound."""
    weights = kept[..., None].astype(x.dtype)
    count = jnp.maximum(weights.sum((1, 2), keepdims=True), 1) * x.shape[-1]
    mean = (x * weights).sum((1, 2), keepdims=True) / count
    variance = (jnp.square(x - mean) * weights).sum((1, 2), keepdims=True) / count
    # Silence has variance 0, and becomes 0 but for rounding.
    return (x - mean) / jnp.sqrt(variance + 1e-3)


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Device: sets random bands and random times of features to 0 in training (Park et al., 2019).

    It follows `AudioFeatures`, whose normalized features have mean 0.
    """

    freq_masks: int = 2  # masks of bands
    freq_mask_size: int = 8  # most bands of a mask
    time_masks: int = 2  # masks of frames
    time_mask_size: int = 20  # most frames of a mask
    time_mask_share: float = 0.2  # of a sound's frames, at most, in a mask
    name: str = "audio"  # of the array (batch, frames, bands, ...)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with parts masked."""
        if keys is None:
            return batch
        x = batch[self.name]
        mask = batch.get(f"{self.name}_mask")
        counts = jnp.full(len(x), x.shape[1]) if mask is None else mask.sum(-1)

        def one(key: Array, x: Array, count: Array) -> Array:
            bands, frames = jax.random.split(key)
            size = jnp.minimum(self.time_mask_size, (self.time_mask_share * count).astype(int))
            hidden = _hidden(frames, self.time_masks, x.shape[0], size, count)[:, None] | _hidden(
                bands, self.freq_masks, x.shape[1], self.freq_mask_size, x.shape[1]
            )
            return jnp.where(hidden.reshape(*hidden.shape, *(1,) * (x.ndim - 2)), 0, x)

        return {**batch, self.name: jax.vmap(one)(keys, x, counts)}


def _hidden(key: Array, masks: int, size: int, most: Any, end: Any) -> Array:
    """Returns where `masks` random spans of up to `most` items below `end` are, (size,) bool."""
    draws = jax.random.uniform(key, (2, masks, 1))
    widths = jnp.floor(draws[0] * (most + 1))
    starts = jnp.floor(draws[1] * (end - widths + 1))
    places = jnp.arange(size)
    return ((places >= starts) & (places < starts + widths)).any(0)
