"""Forecasting the next values of a time series, with metrics in its original unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics import Mean, RootMean
from jdl.tasks.base import Task
from jdl.tasks.outputs import one_array, to_json
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class Forecast(Task):
    """Mean squared error on the scaled targets (batch, targets) of `jdl.data.Series`.

    Metrics: `loss` on that scale; `rmse` and `mae` in the unit of the series.
    """

    inputs: str = "x"  # name of the windows in a batch
    targets: str = "y"  # name of the scaled values to forecast

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, `rmse` and `mae`, each a mean over examples and targets."""
        outputs = outputs.astype(jnp.float32)
        mask = jnp.broadcast_to(batch["mask"][:, None], outputs.shape)
        error = _in_own_unit(outputs, batch) - batch["value"]
        squared = Mean.of(jnp.square(error), mask)
        return {
            "loss": Mean.of(jnp.square(outputs - batch[self.targets]), mask),
            "rmse": RootMean(squared.total, squared.count),
            "mae": Mean.of(jnp.abs(error), mask),
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns forecasts in the unit of the series, (batch, targets) float32."""
        return _in_own_unit(one_array(outputs, self).astype(jnp.float32), batch)

    def target(self, batch: Batch) -> jax.Array:
        """Returns the true values in the unit of the series, (batch, targets) float32."""
        return batch["value"]

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the forecast of each target by name, in the unit of the series."""
        if len(names) != len(prediction):
            return super().format_prediction(prediction, names)
        return {"prediction": dict(zip(names, map(to_json, prediction), strict=True))}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires one output per target."""
        super().validate_batch(batch, outputs, where)
        shape = np.shape(batch[self.targets])
        if outputs.shape[1:] != shape[1:]:
            raise UserError(
                f"{where}: the model's outputs have shape {outputs.shape[1:]} per example, "
                f"the forecast values {shape[1:]}: set model.features to {shape[-1]}"
            )


def _in_own_unit(outputs: jax.Array, batch: Batch) -> jax.Array:
    level = batch["offset"] + batch["scale"] * outputs
    return jnp.where(batch["log"][:, None], jnp.exp(level), level)
