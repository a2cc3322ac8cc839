"""Where in a sequence a vector stands."""

import jax
import jax.numpy as jnp

from jdl.errors import UserError

Array = jax.Array


def sinusoidal(positions: Array, width: int) -> Array:
    """Sines and cosines of geometrically spaced periods (Vaswani et al., 2017, section 3.5).

    Args:
      positions: (...) int32.
      width: of the result, even; sines fill the even places, cosines the odd.

    Returns:
      (..., width) float32.

    Raises:
      UserError: the width is odd.
    """
    if width % 2:
        raise UserError(
            f"sinusoidal positions need an even width, not {width}: set model.embed_dim"
        )
    rates = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    angles = positions[..., None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*positions.shape, width)


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Turns pairs of components by angles that grow with the position (Su et al., 2021, eq. 34).

    The product of a turned query and a turned key depends on the distance of their positions alone.
    A component's partner lies half the depth away, as in GPT-NeoX and Llama.

    Args:
      x: queries or keys (batch, time, heads, depth); the depth is even.
      positions: (batch or 1, time) int32.
      base: angles are positions times powers of it between 1 and 1 / base.

    Returns:
      The same shape and dtype; angles are float32.
    """
    rates = base ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[..., None, None] * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def segment_positions(segments: Array) -> Array:
    """Positions (batch, time) int32 that begin at 0 with each segment of a packed sequence.

    Args:
      segments: (batch, time) int32, of which neighbours in one document are equal.
    """
    index = jnp.arange(segments.shape[1])[None]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def check_length(tokens: Array, max_position_embeddings: int) -> None:
    """Raises a UserError where tokens (batch, time) are longer than a model's context."""
    if tokens.shape[1] > max_position_embeddings:
        raise UserError(
            f"sequences of {tokens.shape[1]} tokens do not fit the model's context of "
            f"{max_position_embeddings}: set model.max_position_embeddings"
        )
