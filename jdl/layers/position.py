"""Position embeddings."""

import jax
import jax.numpy as jnp

from jdl.errors import UserError

Array = jax.Array


def sinusoidal(positions: Array, width: int) -> Array:
    """Sines and cosines of geometrically spaced periods (Vaswani et al., 2017, section 3.5).

    Args:
      positions: (...) int32, or other numbers such as times.
      width: even size of the embedding; sines at even indices, cosines at odd ones.

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
    """Rotary position embedding: rotates pairs of components (Su et al., 2021, equation 34).

    The product of a rotated query and key depends only on the distance of their positions. The two
    components of a pair are half the depth apart, as in GPT-NeoX and Llama.

    Args:
      x: queries or keys (batch, time, heads, depth); the depth is even.
      positions: (batch or 1, time) int32.
      base: the angle of pair i is position * base ** (-2 i / depth).

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
    """Positions (batch, time) int32 that restart at 0 with each segment of a packed sequence.

    Args:
      segments: (batch, time) int32, equal for adjacent tokens of one document.
    """
    index = jnp.arange(segments.shape[1])[None]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # The running maximum is the start of the current segment.
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def check_length(tokens: Array, max_position_embeddings: int) -> None:
    """Raises a UserError if tokens (batch, time) exceed `max_position_embeddings`."""
    if tokens.shape[1] > max_position_embeddings:
        raise UserError(
            f"sequences of {tokens.shape[1]} tokens do not fit the model's context of "
            f"{max_position_embeddings}: set model.max_position_embeddings"
        )
