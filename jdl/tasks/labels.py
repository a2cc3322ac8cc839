"""Classes of examples: checked, and drawn."""

import jax
import numpy as np

from jdl.errors import UserError
from jdl.typing import Key, Keys


def check_labels(
    labels: np.ndarray,
    num_classes: int,
    where: str,
    *,
    name: str,
    task: str,
    origin: str,
    hint: str = "",
) -> None:
    """Requires one integer from 0 to `num_classes` - 1 for each example.

    Args:
      labels: of a batch.
      num_classes: the number of classes.
      where: names the batch, for the errors.
      name: of the array, for the errors.
      task: what needs them, for the errors.
      origin: where the number of classes comes from, for the errors.
      hint: added to the error about shape or dtype.

    Raises:
      UserError: the labels have another rank or dtype, or one is no class.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{where}: {name!r} has shape {labels.shape} and dtype {labels.dtype}, where {task} "
            f"needs one integer per example{hint}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(
            f"{where}: label {labels[wrong[0]]} at row {wrong[0]} is outside 0..{num_classes - 1} "
            f"({origin})"
        )


def draw_labels(keys: Keys, num_classes: int) -> jax.Array:
    """Draws a class uniformly for each key (batch,)."""

    def draw(key: Key) -> jax.Array:
        return jax.random.randint(key, (), 0, num_classes)

    return jax.vmap(draw)(keys)
