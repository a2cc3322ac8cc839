"""Images as sequences of square patches, and back."""

import jax

from jdl.errors import UserError


def cut_patches(images: jax.Array, side: int) -> jax.Array:
    """Cuts images into patches, row by row.

    Args:
      images: (batch, height, width, channels).
      side: of a patch, in pixels.

    Returns:
      (batch, patches, side * side * channels).

    Raises:
      UserError: height or width is no multiple of the side.
    """
    batch, height, width, channels = images.shape
    if height % side or width % side:
        raise UserError(
            f"images of {height}x{width} pixels cannot be cut into patches of {side}: set "
            f"model.patch_size"
        )
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, side * side * channels)


def join_patches(patches: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """Puts the patches of `cut_patches` together.

    Args:
      patches: (batch, patches, side * side * channels).
      shape: height, width and channels of the images.
      side: of a patch, in pixels.

    Returns:
      (batch, height, width, channels).
    """
    height, width, channels = shape
    x = patches.reshape(-1, height // side, width // side, side, side, channels)
    return x.swapaxes(2, 3).reshape(-1, height, width, channels)
