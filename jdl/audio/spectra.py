"""The short-time Fourier transform and its inverse, as librosa's, with time before frequency."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

Padding = Literal["center", "causal", "none"]
"""Zeros around the samples. `center`: frame t is centered on sample `t * hop_length`; `causal`: it
ends before sample `(t + 1) * hop_length`, so that it needs none that follow; `none`: it begins at
sample `t * hop_length`."""


def hann(win_length: int, n_fft: int) -> np.ndarray:
    """Returns the periodic Hann window in the middle of `n_fft` zeros, (n_fft,) float32."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    return np.pad(window, (left, n_fft - win_length - left)).astype(np.float32)


def num_frames(samples: Any, n_fft: int, hop_length: int, padding: Padding = "center") -> Any:
    """Returns the number of frames that `stft` makes of `samples`, or of each of an array."""
    if padding == "causal":
        return samples // hop_length
    extra = 2 * (n_fft // 2) if padding == "center" else 0
    return 1 + (samples + extra - n_fft) // hop_length


def stft(
    x: Array,
    *,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    padding: Padding = "center",
) -> Array:
    """Computes the short-time Fourier transform with a Hann window.

    Args:
      x: (..., samples) float32.
      n_fft: samples of a frame.
      hop_length: samples between frames.
      win_length: samples of the window, in the middle of a frame; None: `n_fft`.
      padding: where frames are.

    Returns:
      (..., frames, 1 + n_fft // 2) complex64; see `num_frames`.
    """
    count = num_frames(x.shape[-1], n_fft, hop_length, padding)
    before = {"center": n_fft // 2, "causal": n_fft - hop_length, "none": 0}[padding]
    blocks = -(-n_fft // hop_length)
    after = max((count - 1 + blocks) * hop_length - before - x.shape[-1], 0)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    # Blocks of hop_length samples; a frame is some in a row. Slices are faster than a gather.
    x = x[..., : (count - 1 + blocks) * hop_length].reshape(*x.shape[:-1], -1, hop_length)
    parts = [jax.lax.slice_in_dim(x, j, j + count, axis=x.ndim - 2) for j in range(blocks)]
    frames = jnp.concatenate(parts, -1)[..., :n_fft]
    return jnp.fft.rfft(frames * hann(win_length or n_fft, n_fft))


def istft(
    spectrum: Array,
    *,
    hop_length: int,
    win_length: int | None = None,
    length: int | None = None,
    padding: Padding = "center",
) -> Array:
    """Inverts `stft` by weighted overlap-add (Griffin and Lim, 1984), least squares.

    Args:
      spectrum: (..., frames, bins) complex64; `n_fft` is 2 * (bins - 1).
      hop_length, win_length, padding: as of `stft`.
      length: samples to return; None: those that the frames reach.

    Returns:
      (..., length) float32.
    """
    count, n_fft = spectrum.shape[-2], 2 * (spectrum.shape[-1] - 1)
    window = hann(win_length or n_fft, n_fft)
    x = _overlap_add(jnp.fft.irfft(spectrum, n_fft) * window, hop_length)
    squares = np.zeros((count - 1) * hop_length + n_fft, np.float32)
    for frame in range(count):
        squares[frame * hop_length :][:n_fft] += window**2
    x = x / np.where(squares > np.finfo(np.float32).tiny, squares, 1)
    before = {"center": n_fft // 2, "causal": n_fft - hop_length, "none": 0}[padding]
    reached = (count - 1) * hop_length + n_fft - before - (n_fft // 2 if padding == "center" else 0)
    x = x[..., before : before + (reached if length is None else length)]
    missing = (length or 0) - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing > 0 else x


def _overlap_add(frames: Array, hop_length: int) -> Array:
    """Returns the sum (..., samples) of frames (..., frames, n_fft) `hop_length` apart."""
    count, size = frames.shape[-2:]
    blocks = -(-size // hop_length)
    lead = [(0, 0)] * (frames.ndim - 1)
    frames = jnp.pad(frames, [*lead, (0, blocks * hop_length - size)])
    total = jnp.zeros((*frames.shape[:-2], count + blocks - 1, hop_length), frames.dtype)
    for j in range(blocks):
        part = frames[..., j * hop_length : (j + 1) * hop_length]
        total = total.at[..., j : j + count, :].add(part)
    return total.reshape(*total.shape[:-2], -1)[..., : (count - 1) * hop_length + size]
