"""Randomness of tasks: one key per row of the global batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.typing import Batch, Key, Keys

ROW_KEYS = "row_keys"
"""Name of the keys in the batch that a task receives."""

ROW_SEEDS = "row_seeds"
"""Name of what these are made of in a batch to evaluate or predict, see `row_seeds`."""

_TASK = 0x7461736B
"""Folded into the keys of a task, which then draws nothing that augmentation has drawn."""


def row_keys(batch: Batch, stream: int = 0) -> Keys:
    """Returns one key per row of a batch, for the random numbers of a task.

    In training a key is a function of the run's key, the step, and the row's index in the global
    batch; in evaluation and prediction of the `key` given there, and the example's index in the
    split or input. So what a task draws does not depend on strategy, devices, micro-batches, or in
    evaluation on the batch size:

        noise = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(row_keys(batch))

    Args:
      batch: as a task receives it.
      stream: a number for each independent draw.

    Returns:
      Typed keys (batch,).

    Raises:
      UserError: the batch was not made by a training step, an evaluation or a prediction.
    """
    if ROW_KEYS in batch:
        keys = batch[ROW_KEYS]
    elif ROW_SEEDS in batch:
        keys = jax.vmap(_of_seed)(batch[ROW_SEEDS])
    else:
        raise UserError(
            f"the batch has no keys: add them with jdl.tasks.with_row_keys(batch, key) where a "
            f"task is called directly (it has {', '.join(batch)})"
        )

    def one(key: Key) -> Key:
        return jax.random.fold_in(jax.random.fold_in(key, _TASK), stream)

    return jax.vmap(one)(keys)


def fold_in_rows(key: Key, first: Any, rows: int) -> Keys:
    """Returns a key for each of the rows `first`, `first` + 1, ..."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def with_row_keys(batch: Batch, keys: Key | Keys) -> dict[str, Any]:
    """Returns a batch with the keys that `row_keys` reads.

    Args:
      batch: arrays (batch, ...).
      keys: one per row, or one for all, into which the rows' indices are folded.

    Raises:
      UserError: the data has an array of that name.
    """
    for name in (ROW_KEYS, ROW_SEEDS):
        if name in batch:
            raise UserError(
                f"the data has an array {name!r}, by which a task finds its random keys: give it "
                f"another name"
            )
    keys = keys if keys.ndim else fold_in_rows(keys, 0, len(batch["mask"]))
    return {**batch, ROW_KEYS: keys}


def row_seeds(key: Key | None, rows: np.ndarray) -> np.ndarray:
    """Returns what the keys of examples are made of, an array like others of a batch.

    Args:
      key: of the evaluation; None: key 0.
      rows: indices of the examples, (batch,).

    Returns:
      (batch, 3) uint32: the words of the key, and the row's index.

    Raises:
      UserError: the key is not one of `jax.random.key`.
    """
    if key is not None and not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise UserError(f"key is {key!r:.40}: pass one of jax.random.key(seed)")
    words = np.zeros(2) if key is None else np.asarray(jax.random.key_data(key)).ravel()[-2:]
    return np.column_stack([np.broadcast_to(words, (len(rows), 2)), rows]).astype(np.uint32)


def pop_row_seeds(batch: Mapping[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    """Returns a batch to evaluate without its `row_seeds`, and these.

    Where it has none, as the input of an exported function, they are of key 0 and of the rows'
    indices in the batch.
    """
    batch = dict(batch)
    if ROW_SEEDS in batch:
        return batch, batch.pop(ROW_SEEDS)
    rows = jnp.arange(batch["mask"].shape[0], dtype=jnp.uint32)  # may be symbolic
    return batch, jnp.pad(rows[:, None], ((0, 0), (2, 0)))


def _of_seed(seed: jax.Array) -> Key:
    """Returns the key of one of `row_seeds`, (3,) uint32."""
    key = jax.random.wrap_key_data(seed[:2], impl="threefry2x32")
    return jax.random.fold_in(key, seed[2])
