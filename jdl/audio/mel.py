"""Mel filter banks, log-mel features and MFCC, as librosa's, with time before frequency."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio.inversion import griffin_lim, mel_to_power
from jdl.audio.spectra import Padding, num_frames, stft
from jdl.errors import UserError

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class MelSpectrogram:
    """Mel spectra of sounds: how they are computed, and what inverts them."""

    sample_rate: int = 8000  # samples per second
    n_fft: int = 256  # samples of a frame
    hop_length: int = 80  # samples between frames
    win_length: int | None = None  # samples of the Hann window; None: n_fft
    n_mels: int = 40  # mel bands
    fmin: float = 0.0  # lowest frequency in Hz
    fmax: float | None = None  # highest frequency in Hz; None: half the sample rate
    power: float = 2.0  # exponent of the magnitudes: 1 or 2
    padding: Padding = "center"  # where frames are, see `jdl.audio.stft`
    floor: float = 1e-6  # smallest value before the logarithm

    def __post_init__(self) -> None:
        top = self.sample_rate / 2 if self.fmax is None else self.fmax
        if not 0 <= self.fmin < top <= self.sample_rate / 2:
            raise UserError(
                f"MelSpectrogram needs 0 <= fmin < fmax <= sample_rate / 2, not {self.fmin:g}, "
                f"{top:g} and {self.sample_rate / 2:g} Hz"
            )
        if not 1 <= self.hop_length <= (self.win_length or self.n_fft) <= self.n_fft:
            raise UserError(
                f"MelSpectrogram needs hop_length <= win_length <= n_fft, not {self.hop_length}, "
                f"{self.win_length} and {self.n_fft}"
            )
        if self.n_fft % 2 or not self.floor > 0:
            raise UserError(
                f"MelSpectrogram needs an even n_fft and a floor above 0, not {self.n_fft} and "
                f"{self.floor}"
            )
        if (empty := ~self.filters.any(0)).any():
            raise UserError(
                f"MelSpectrogram has {self.n_mels} bands, of which {int(empty.sum())} lie between "
                f"the frequencies of {self.n_fft} samples: lower n_mels, or raise n_fft"
            )

    @property
    def filters(self) -> np.ndarray:
        """The filter bank, (bins, n_mels) float32."""
        return mel_filter_bank(self.sample_rate, self.n_fft, self.n_mels, self.fmin, self.fmax)

    def frames(self, samples: Any) -> Any:
        """Returns the number of frames of `samples`, a number or an array of these."""
        return num_frames(samples, self.n_fft, self.hop_length, self.padding)

    def seconds(self, frame: Any) -> Any:
        """Returns the time of the middle of a frame, a number or an array of these."""
        middle = {
            "center": 0.0,
            "causal": self.hop_length - self.n_fft / 2,
            "none": self.n_fft / 2,
        }[self.padding]
        return (frame * self.hop_length + middle) / self.sample_rate

    def mel(self, waves: Array) -> Array:
        """Computes mel spectra (..., frames, n_mels) of sounds (..., samples), both float32."""
        spectrum = stft(
            waves,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            padding=self.padding,
        )
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        if self.power != 2:
            # The gradient of a root is infinite at 0, where the inner one holds it back.
            power = jnp.where(power > 0, jnp.where(power > 0, power, 1) ** (self.power / 2), 0)
        return jnp.matmul(power, self.filters, precision="highest")

    def log_mel(self, waves: Array) -> Array:
        """Computes `log(max(mel, floor))`, the natural logarithm, (..., frames, n_mels)."""
        return jnp.log(jnp.maximum(self.mel(waves), self.floor))

    def mfcc(self, waves: Array, count: int = 20) -> Array:
        """Computes the first `count` mel-frequency cepstral coefficients (..., frames, count).

        They are the orthonormal DCT-II of mel spectra in decibels, 80 dB below the largest of the
        sound at least (Davis and Mermelstein, 1980; librosa's defaults).
        """
        decibels = power_to_db(self.mel(waves), amin=1e-10, top_db=80.0)
        return jnp.matmul(decibels, dct_matrix(self.n_mels, count), precision="highest")

    def waves(self, log_mel: Array, key: Array | None = None, num_iters: int = 32) -> Array:
        """Inverts `log_mel` by non-negative least squares and Griffin-Lim.

        Args:
          log_mel: (..., frames, n_mels).
          key: of the first phases; None: these are 0.
          num_iters: iterations of Griffin-Lim.

        Returns:
          (..., samples) float32.
        """
        mel = jnp.exp(log_mel)
        power = mel_to_power(jnp.where(log_mel > np.log(self.floor) + 1e-3, mel, 0), self.filters)
        return griffin_lim(
            power ** (1 / self.power),
            key,
            hop_length=self.hop_length,
            win_length=self.win_length,
            num_iters=num_iters,
            padding=self.padding,
        )


@functools.cache
def mel_filter_bank(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> np.ndarray:
    """Returns triangular filters on Slaney's mel scale, each of unit area (Slaney, 1998).

    The scale is linear below 1 kHz and logarithmic above, as in his Auditory Toolbox and by default
    in librosa.

    Returns:
      (1 + n_fft // 2, n_mels) float32.
    """
    top = sample_rate / 2 if fmax is None else fmax
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(top), n_mels + 2))
    bins = np.linspace(0, sample_rate / 2, 1 + n_fft // 2)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    found = (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)
    found.flags.writeable = False  # it is cached
    return found


def _hz_to_mel(hertz: float) -> float:
    linear = hertz / (200 / 3)
    return linear if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def power_to_db(
    power: Array, *, ref: float = 1.0, amin: float = 1e-10, top_db: float | None = 80.0
) -> Array:
    """Converts powers (..., frames, bands) to decibels.

    Args:
      power: squared magnitudes.
      ref: the power of 0 dB.
      amin: smallest power.
      top_db: range below the largest value of each sound; None: unlimited.
    """
    decibels = 10 * (jnp.log10(jnp.maximum(power, amin)) - np.log10(max(amin, ref)))
    if top_db is None:
        return decibels
    return jnp.maximum(decibels, decibels.max((-2, -1), keepdims=True) - top_db)


def dct_matrix(size: int, count: int) -> np.ndarray:
    """Returns the first `count` vectors of the orthonormal DCT-II, (size, count) float32."""
    angles = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(count)
    matrix = np.cos(angles) * np.sqrt(2 / size)
    matrix[:, 0] /= np.sqrt(2)
    return matrix.astype(np.float32)
