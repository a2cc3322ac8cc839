"""Outputs of models and predictions, as arrays and as JSON."""

from typing import Any

import jax
import numpy as np

from jdl.errors import UserError
from jdl.typing import Json, PyTree


def one_array(outputs: Any, task: Any) -> jax.Array:
    """Returns the outputs of a model as they are.

    Raises:
      UserError: they are several arrays.
    """
    if not hasattr(outputs, "dtype"):
        raise UserError(
            f"the model returns a {type(outputs).__name__}, where {type(task).__name__} needs one "
            f"array: return that, or define a task with loss_and_metrics and to_prediction"
        )
    return outputs


def count_rows(tree: PyTree) -> int:
    """Returns the length of axis 0 of arrays."""
    return len(jax.tree.leaves(tree)[0])


def to_json(values: Any) -> Json:
    """Converts an array to nested lists, and an array of one element to a number.

    A float32 gets its shortest decimal form: 0.1, not 0.10000000149.
    """
    array = np.asarray(values)
    if array.size == 1:
        (one,) = array.ravel()
        return float(str(one)) if array.dtype.kind == "f" else one.item()
    return [to_json(value) for value in array]
