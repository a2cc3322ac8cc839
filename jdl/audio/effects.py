"""Changes of sounds that keep what is said: duration, noise, reverberation."""

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio.spectra import istft, stft

Array = jax.Array


def phase_vocoder(spectrum: Array, rate: Array | float, hop_length: int, count: int) -> Array:
    """Changes the speed of a sound without its pitch (Flanagan and Golden, 1966; Ellis, 2002).

    Args:
      spectrum: (frames, bins) complex64, of `jdl.audio.stft`.
      rate: above 1 to speed up; a number, or a traced scalar.
      hop_length: of the spectrum.
      count: frames to return; those past the end of the sound are 0.

    Returns:
      (count, bins) complex64; `ceil(frames / rate)` are of the sound.
    """
    frames, bins = spectrum.shape
    padded = jnp.pad(spectrum, ((0, 2), (0, 0)))
    steps = jnp.arange(count) * jnp.float32(rate)
    whole = jnp.minimum(steps.astype(jnp.int32), frames)
    share = (steps - whole)[:, None]
    left, right = padded[whole], padded[whole + 1]
    magnitudes = (1 - share) * jnp.abs(left) + share * jnp.abs(right)
    advance = jnp.linspace(0, np.pi * hop_length, bins)
    change = jnp.angle(right) - jnp.angle(left) - advance
    change = change - 2 * np.pi * jnp.round(change / (2 * np.pi)) + advance
    # Whole turns are left out before they are added up, since float32 has seven digits.
    change = jnp.mod(change, 2 * np.pi)
    phases = jnp.angle(spectrum[0]) + jnp.cumsum(change, 0) - change
    found = magnitudes * jax.lax.complex(jnp.cos(phases), jnp.sin(phases))
    return jnp.where((steps < frames)[:, None], found, 0)


def time_stretch(
    x: Array, rate: Array | float, *, length: int, n_fft: int = 256, hop_length: int = 64
) -> Array:
    """Changes the speed of a sound without its pitch, as `librosa.effects.time_stretch`.

    Args:
      x: (samples,) float32.
      rate: above 1 to speed up; a number, or a traced scalar.
      length: samples to return: `round(samples / rate)`, or as many with zeros or a cut at the end.
      n_fft, hop_length: of the spectra.
    """
    spectrum = stft(x, n_fft=n_fft, hop_length=hop_length)
    count = 1 + -(-length // hop_length)
    stretched = phase_vocoder(spectrum, rate, hop_length, count)
    return istft(stretched, hop_length=hop_length, length=length)


def add_noise(x: Array, noise: Array, snr_db: Array | float, mask: Array) -> Array:
    """Adds noise at a signal-to-noise ratio, that of the mean powers where `mask` is True.

    Silence stays silent, since noise of any power would have the ratio 0.

    Args:
      x: (..., samples) float32.
      noise: of the same shape.
      snr_db: decibels, (...).
      mask: bool, of the same shape; False for padding, which stays as it is.
    """
    count = jnp.maximum(mask.sum(-1), 1)
    signal = jnp.where(mask, x**2, 0).sum(-1) / count
    power = jnp.where(mask, noise**2, 0).sum(-1) / count
    wanted = signal / 10 ** (jnp.asarray(snr_db) / 10)
    scale = jnp.sqrt(wanted / jnp.where(power > 0, power, 1))
    return jnp.where(mask, x + noise * scale[..., None], x)


def convolve(x: Array, response: Array) -> Array:
    """Convolves sounds (..., samples) with impulse responses (..., taps), cut to `samples`.

    By the FFT: a second of reverberation has thousands of taps.
    """
    size = x.shape[-1] + response.shape[-1] - 1
    size = 1 << (size - 1).bit_length()
    product = jnp.fft.rfft(x, size) * jnp.fft.rfft(response, size)
    return jnp.fft.irfft(product, size)[..., : x.shape[-1]]
