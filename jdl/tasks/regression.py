"""Regression: one or more real values per example."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics import Mean, RootMean
from jdl.tasks.base import Task
from jdl.tasks.outputs import one_array
from jdl.typing import Batch


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Mean squared error between outputs and targets, (batch,) or (batch, ...).

    An output of shape (batch, 1) fits targets of shape (batch,). Metrics: `loss` (mean squared
    error), `rmse` and `mae`, each a mean over examples and target elements.
    """

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, `rmse` and `mae`; their weight is the number of target elements."""
        targets = batch[self.targets].astype(jnp.float32)
        error = outputs.astype(jnp.float32).reshape(targets.shape) - targets
        mask = batch["mask"].reshape((-1,) + (1,) * (targets.ndim - 1))
        mask = jnp.broadcast_to(mask, targets.shape)
        squared = Mean.of(jnp.square(error), mask)
        return {
            "loss": squared,
            "rmse": RootMean(squared.total, squared.count),
            "mae": Mean.of(jnp.abs(error), mask),
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the model's output in float32, its shape unchanged."""
        del batch
        return one_array(outputs, self).astype(jnp.float32)

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires outputs that fit the targets' shape."""
        super().validate_batch(batch, outputs, where)
        shape = np.shape(batch[self.targets])[1:]
        if outputs.shape[1:] not in (shape, (*shape, 1)):
            raise UserError(
                f"{where}: the model's outputs have shape {outputs.shape[1:]} per example, "
                f"the targets {self.targets!r} {shape}"
            )
