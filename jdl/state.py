"""The state of a training run: arrays only, so it is placed, donated and saved as it is."""

from typing import Any

import flax.struct
import jax

from jdl.typing import Key, PyTree

CARRY = "carry"
"""The collection of what a model carries from one batch to the next, (batch, ...) each: not a sum
or a mean over the batch, but the rows' own."""

CACHE = "cache"
"""The collection of what a model has read in generation, keys and values or states, (batch, ...)
each."""


@flax.struct.dataclass
class TrainState:
    """Everything that an update reads and writes.

    Attributes:
      step: batches consumed, int32 scalar.
      key: the run's typed PRNG key. It never changes: an update folds the step into it.
      params: what the optimizer changes, in float32.
      collections: the model's other variables by name, such as batch statistics.
      opt_state: the state of the Optax transformation, averaged weights included.
    """

    step: jax.Array
    key: Key
    params: PyTree
    collections: dict[str, Any]
    opt_state: PyTree
