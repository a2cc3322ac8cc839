"""From mel spectra back to sounds: non-negative least squares and Griffin-Lim."""

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio.spectra import Padding, istft, stft

Array = jax.Array


def mel_to_power(mel: Array, filters: np.ndarray, num_iters: int = 100) -> Array:
    """Finds the non-negative spectra whose mel spectra are nearest, by least squares.

    Accelerated projected gradient (FISTA; Beck and Teboulle, 2009) from the clipped solution of
    the unconstrained problem. There are more bins than bands, so that others fit as well.

    Args:
      mel: (..., frames, n_mels), not negative.
      filters: (bins, n_mels), see `jdl.audio.mel_filter_bank`.
      num_iters: iterations.

    Returns:
      (..., frames, bins) float32.
    """
    gram = filters @ filters.T
    rate = np.float32(1 / np.linalg.norm(gram, 2))
    start = jnp.maximum(jnp.matmul(mel, np.linalg.pinv(filters), precision="highest"), 0)
    target = jnp.matmul(mel, filters.T, precision="highest")

    def body(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, y, t = carry
        slope = jnp.matmul(y, gram, precision="highest") - target
        new = jnp.maximum(y - rate * slope, 0)
        later = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return new, new + (t - 1) / later * (new - x), later

    return jax.lax.fori_loop(0, num_iters, body, (start, start, jnp.float32(1)))[0]


def griffin_lim(
    magnitudes: Array,
    key: Array | None = None,
    *,
    hop_length: int,
    win_length: int | None = None,
    num_iters: int = 32,
    momentum: float = 0.99,
    length: int | None = None,
    padding: Padding = "center",
) -> Array:
    """Finds a sound with the given magnitudes (Griffin and Lim, 1984; Perraudin et al., 2013).

    Args:
      magnitudes: (..., frames, bins) float32.
      key: of the first phases, uniform; None: these are 0.
      hop_length, win_length, padding: as of `jdl.audio.stft`.
      num_iters: iterations.
      momentum: 0 for the original algorithm.
      length: samples to return; None: those that the frames reach.

    Returns:
      (..., length) float32.
    """
    n_fft = 2 * (magnitudes.shape[-1] - 1)
    whole = (magnitudes.shape[-2] - 1) * hop_length
    if padding != "center":
        whole += hop_length if padding == "causal" else n_fft

    def inverse(phases: Array, length: int | None) -> Array:
        return istft(
            magnitudes * phases,
            hop_length=hop_length,
            win_length=win_length,
            length=length,
            padding=padding,
        )

    def body(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        phases, previous = carry
        found = stft(
            inverse(phases, whole),
            n_fft=n_fft,
            hop_length=hop_length,
            win_length=win_length,
            padding=padding,
        )
        phases = found - momentum / (1 + momentum) * previous
        return phases / (jnp.abs(phases) + np.finfo(np.float32).tiny), found

    angles = jnp.zeros(magnitudes.shape)
    if key is not None:
        angles = jax.random.uniform(key, magnitudes.shape, maxval=2 * np.pi)
    start = jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
    phases, _ = jax.lax.fori_loop(0, num_iters, body, (start, jnp.zeros_like(start)))
    return inverse(phases, length)
