"""Inpainting with a model that was not trained for it."""

import jax
import jax.numpy as jnp

from jdl.diffusion.paths import NoisePath, Time
from jdl.diffusion.samplers import Denoise, ddim_step, draw
from jdl.typing import Keys

Array = jax.Array


def repaint(
    denoise: Denoise,
    path: NoisePath,
    x: Array,
    keys: Keys,
    *,
    image: Array,
    mask: Array,
    num_steps: int,
    resamplings: int = 1,
    start: Time | None = None,
) -> Array:
    """Draws new pixels in place of some, which fit the others: RePaint (Lugmayr et al., 2022).

    Each step is one of ancestral sampling, in which the pixels to keep are those of the image, with
    noise. It is repeated from the noise level before, so that new pixels can follow the others.

    Args:
      denoise: the model, as for a `Sampler`.
      path: on which it was trained.
      x: points at the time `start`, (batch, ...) float32: noise at the path's end.
      keys: one for each row.
      image: (batch, ...) float32.
      mask: bool, broadcast to the image; True where pixels are drawn.
      num_steps: from noise to data.
      resamplings: times that each step is taken, at least 1.
      start: time of x, () float32; None: the path's end.

    Returns:
      (batch, ...) float32, equal to the image where the mask is False.
    """
    times = path.times(num_steps, start)

    def body(x: Array, at: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        t, s, index, is_last = at
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        ancestral, known, back = (
            draw(jax.vmap(jax.random.fold_in, (0, None))(own, stream), x.shape[1:])
            for stream in range(3)
        )
        drawn = ddim_step(path, *denoise(x, t), t, s, 1.0, ancestral)
        x = jnp.where(mask, drawn, path.point(image, known, s))
        ratio = path.alpha(t) / path.alpha(s)
        added = jnp.sqrt(jnp.maximum(path.sigma(t) ** 2 - (ratio * path.sigma(s)) ** 2, 0.0))
        return jnp.where(is_last, x, ratio * x + added * back), None

    rounds = (num_steps - 1) * resamplings
    t, s = (jnp.repeat(each, resamplings) for each in (times[:-2], times[1:-1]))
    index = jnp.arange(rounds)
    x, _ = jax.lax.scan(body, x, (t, s, index, index % resamplings == resamplings - 1))
    return jnp.where(mask, denoise(x, times[-2])[0], image)
