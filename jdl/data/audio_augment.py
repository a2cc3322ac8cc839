"""Augmentation of sounds in the compiled step: gain, noise, reverberation, speed."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio import add_noise, convolve, time_stretch
from jdl.data.audio import sounds
from jdl.data.transforms import content_keys
from jdl.errors import UserError
from jdl.typing import Batch, Keys

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class RandomGain:
    """Device: amplifies sounds by a random factor, within [-1, 1], beyond which they are clipped.

    In training; with `in_evaluation` also there, drawn from the sound itself, so that it is the
    same in any batch of any run: for scores of sounds that are too loud or too soft.
    """

    min_db: float = -12.0  # decibels
    max_db: float = 12.0  # decibels
    in_evaluation: bool = False  # also in evaluation and prediction
    name: str = "audio"  # of the array (batch, samples)

    def __post_init__(self) -> None:
        check_range(self, "min_db", "max_db")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch amplified."""
        x, keys = _drawn(batch, keys, self)
        if keys is None:
            return batch
        gains = _uniform(keys, self.min_db, self.max_db)
        found = jnp.clip(x * 10 ** (gains / 20)[:, None], -1, 1)
        return {**batch, self.name: found}


@dataclass(frozen=True, kw_only=True)
class AddNoise:
    """Device: adds noise at a random signal-to-noise ratio.

    The ratio is of the mean powers of a sound without its padding; silence stays as it is. See
    `RandomGain` for evaluation.
    """

    min_snr_db: float = 10.0  # decibels
    max_snr_db: float = 30.0  # decibels
    color: float = 0.0  # its power falls as frequency ** -color: 0 white, 1 pink, 2 brown noise
    rate: float = 1.0  # share of the sounds that get noise
    in_evaluation: bool = False  # also in evaluation and prediction
    name: str = "audio"  # of the array (batch, samples)

    def __post_init__(self) -> None:
        check_range(self, "min_snr_db", "max_snr_db")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with noise."""
        x, keys = _drawn(batch, keys, self)
        if keys is None:
            return batch
        _, mask = sounds(batch, self.name)
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        if self.color:
            noise = _colored(noise, self.color)
        ratios = _uniform(_fold(keys, 1), self.min_snr_db, self.max_snr_db)
        chosen = jax.vmap(jax.random.uniform)(_fold(keys, 2)) < self.rate
        noisy = add_noise(x, noise, ratios, mask)
        return {**batch, self.name: jnp.where(chosen[:, None], noisy, x)}


@dataclass(frozen=True, kw_only=True)
class Reverberate:
    """Device: adds the reverberation of a random room.

    The impulse response is the direct sound and noise that decays exponentially (Moorer, 1979). The
    end of a sound is not prolonged. See `RandomGain` for evaluation.
    """

    sample_rate: int = 8000  # samples per second
    min_seconds: float = 0.1  # in which it decays by 60 dB
    max_seconds: float = 0.5  # in which it decays by 60 dB
    direct_db: float = 5.0  # power of the direct sound, over that of the reverberation
    rate: float = 0.5  # share of the sounds that are changed
    in_evaluation: bool = False  # also in evaluation and prediction
    name: str = "audio"  # of the array (batch, samples)

    def __post_init__(self) -> None:
        check_range(self, "min_seconds", "max_seconds")
        if not self.min_seconds > 0:
            raise UserError(f"Reverberate.min_seconds must be above 0, not {self.min_seconds:g}")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with reverberation."""
        x, keys = _drawn(batch, keys, self)
        if keys is None:
            return batch
        _, mask = sounds(batch, self.name)
        taps = max(int(self.max_seconds * self.sample_rate), 2)
        noise = jax.vmap(lambda key: jax.random.normal(key, (taps - 1,)))(keys)
        seconds = _uniform(_fold(keys, 1), self.min_seconds, self.max_seconds)[:, None]
        times = jnp.arange(1, taps) / self.sample_rate
        tail = noise * jnp.exp(-np.log(1000) * times / seconds)  # 60 dB are a factor of 1000
        tail *= 10 ** (-self.direct_db / 20) / jnp.linalg.norm(tail, axis=1, keepdims=True)
        response = jnp.concatenate([jnp.ones((len(x), 1)), tail], 1)
        chosen = jax.vmap(jax.random.uniform)(_fold(keys, 2)) < self.rate
        return {
            **batch,
            self.name: jnp.where(chosen[:, None] & mask, convolve(x, response), x),
        }


@dataclass(frozen=True, kw_only=True)
class TimeStretch:
    """Device: changes the speed of sounds by a random factor without their pitch, in training.

    By a phase vocoder, as `librosa.effects.time_stretch`. The array keeps its length: what becomes
    longer than that is cut off, and `audio_mask` is set anew.
    """

    min_rate: float = 0.9  # slowest
    max_rate: float = 1.1  # fastest
    n_fft: int = 256  # samples of a frame
    name: str = "audio"  # of the array (batch, samples)

    def __post_init__(self) -> None:
        check_range(self, "min_rate", "max_rate")
        if not self.min_rate > 0:
            raise UserError(f"TimeStretch.min_rate must be above 0, not {self.min_rate:g}")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch at other speeds."""
        if keys is None:
            return batch
        x, mask = sounds(batch, self.name)
        rates, length = _uniform(keys, self.min_rate, self.max_rate), x.shape[1]

        def one(x: Array, rate: Array) -> Array:
            return time_stretch(
                x, rate, length=length, n_fft=self.n_fft, hop_length=self.n_fft // 4
            )

        counts = jnp.minimum(jnp.round(mask.sum(1) / rates), length)
        kept = jnp.arange(length) < counts[:, None]
        found = jnp.where(kept, jax.vmap(one)(x, rates), 0)
        return {**batch, self.name: found, f"{self.name}_mask": kept}


def check_range(transform: Any, low: str, high: str) -> None:
    """Raises a UserError unless one field is at most the other."""
    first, last = getattr(transform, low), getattr(transform, high)
    if not first <= last:
        raise UserError(f"{type(transform).__name__} needs {low} <= {high}, not {first}, {last}")


def _drawn(batch: Batch, keys: Keys | None, transform: Any) -> tuple[Array, Keys | None]:
    """Returns sounds, and the keys to draw from; None: they stay as they are."""
    x, _ = sounds(batch, transform.name)
    if keys is None and transform.in_evaluation:
        keys = content_keys(jax.lax.bitcast_convert_type(x, jnp.uint32))
    return x, keys


def _uniform(keys: Keys, low: float, high: float) -> Array:
    """Returns a number for each key, (batch,)."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def _fold(keys: Keys, number: int) -> Keys:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _colored(noise: Array, color: float) -> Array:
    """Returns noise (batch, samples) whose power falls as frequency ** -color."""
    size = noise.shape[1]
    places = np.maximum(np.arange(size // 2 + 1), 1).astype(np.float32)
    return jnp.fft.irfft(jnp.fft.rfft(noise) * places ** (-color / 2), size)
