"""The state of a training run: arrays only, so it is placed, donated and saved as it is."""

from typing import Any

import flax.struct
import jax

from jdl.typing import Key, PyTree

CARRY = "carry"
"""Collection of states that a model carries between batches, (batch, ...) each: one per row, never
summed or averaged over the batch."""

CACHE = "cache"
"""Collection that autoregressive decoding caches: keys and values, or states, (batch, ...) each."""


@flax.struct.dataclass
class TrainState:
    """All arrays that an update reads and writes.

    Attributes:
      step: batches consumed, int32 scalar.
      key: the run's typed PRNG key; constant, since an update folds the step into it.
      params: trainable parameters, float32.
      collections: the model's other variables by name, such as batch statistics.
      opt_state: the state of the Optax transformation, averaged weights included.
    """

    step: jax.Array
    key: Key
    params: PyTree
    collections: dict[str, Any]
    opt_state: PyTree
