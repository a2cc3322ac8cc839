"""Forecasting a whole horizon of time series, with quantiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.files import to_json as json
from jdl.media import Texts
from jdl.metrics import Mean, RootMean
from jdl.tasks.base import Task
from jdl.tasks.outputs import one_array, to_json
from jdl.typing import Batch, Json

LEAST_DEVIATION = 1e-3
"""Scale, at least, of a distribution of scaled values, so that its density is bounded."""


@dataclass(frozen=True, kw_only=True)
class QuantileForecast(Task):
    """Forecasts quantiles of every step of the horizon of `jdl.data.Panel`.

    Outputs (batch, horizon, targets * n) are the quantiles of the scaled targets, n =
    `len(quantiles)`, trained on the pinball loss (Koenker and Bassett, 1978), and sorted, so that
    they do not cross; or with a `distribution` its location and scale, n = 2, trained on the log
    likelihood, of all steps at once (`AutoregressiveForecast`: of one after another).

    Metrics: `loss` on the scale of the windows; in the series' unit `mae` and `rmse` of the median,
    beside the naive forecasts `mae_last_value` and `mae_last_season`; `mase`, the error of the
    median divided by that of the seasonal naive forecast in training; `wql`, twice the sum of all
    pinball losses over that of absolute values, the mean over quantiles; `coverage`, the share of
    values between the outermost quantiles.
    """

    inputs: str | tuple[str, ...] = ("past", "future", "static")  # names in a batch
    targets: str = "y"  # name of the scaled values to forecast
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # rising
    distribution: Literal["normal", "laplace"] | None = None  # None: of no given form
    interval_scale: float = 1.0
    """Factor on the distance of each quantile from the median in evaluation and prediction, which
    calibrates `coverage` on a validation split; the median and the loss do not change."""

    season: int = 1  # steps that `mae_last_season` goes back: `data.season`

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip(self.quantiles, self.quantiles[1:], strict=False))
        within = all(0 < each < 1 for each in self.quantiles)
        if not (rising and within and 0.5 in self.quantiles and self.season >= 1):
            raise UserError(
                f"task.quantiles are rising numbers between 0 and 1 that hold 0.5, and task.season "
                f"is at least 1, not {self.quantiles} and {self.season}"
            )

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        """Computes the metrics; steps that are not observed have none."""
        return {"loss": self.objective(outputs, batch), **self.scores(self._scaled(outputs), batch)}

    def objective(self, outputs: jax.Array, batch: Batch) -> Mean:
        """Returns the training loss over the steps that are observed."""
        y, mask = batch[self.targets], batch["mask"][:, None, None] & batch["observed"]
        loss = self._likelihood(outputs, y) if self.distribution else self._pinball(outputs, y)
        return Mean.of(loss, mask)

    def scores(self, quantiles: jax.Array, batch: Batch) -> dict[str, Any]:
        """Computes all metrics but the loss.

        Args:
          quantiles: of the scaled targets, (batch, horizon, targets, quantiles).
          batch: the windows.
        """
        value, own = batch["value"], in_own_unit(quantiles, batch)
        mask = batch["mask"][:, None, None] & batch["observed"]
        median = own[..., self.quantiles.index(0.5)]
        error, weight = jnp.abs(median - value), mask.astype(jnp.float32)
        squared = Mean.of(jnp.square(error), mask)
        pinball = _pinball(own, value[..., None], jnp.array(self.quantiles)).mean(-1)
        inside = (own[..., 0] <= value) & (value <= own[..., -1])
        naive = jnp.broadcast_to(batch["naive_error"][:, None], error.shape)
        return {
            "mae": Mean.of(error, mask),
            "rmse": RootMean(squared.total, squared.count),
            "mase": Mean.of(error / naive, mask),
            "wql": Mean((2 * pinball * weight).sum(), (jnp.abs(value) * weight).sum()),
            "coverage": Mean.of(inside.astype(jnp.float32), mask),
            **{f"mae_{k}": Mean.of(jnp.abs(v - value), mask) for k, v in self._naive(batch)},
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns quantiles in the unit of the series, (batch, horizon, targets, quantiles)."""
        return in_own_unit(self._scaled(one_array(outputs, self)), batch)

    def target(self, batch: Batch) -> jax.Array:
        """Returns the true values in the unit of the series, (batch, horizon, targets)."""
        return batch["value"]

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns by target the quantiles of each step, by their name such as `0.5`."""
        levels = [f"{each:g}" for each in self.quantiles]
        return {
            "prediction": {
                name: dict(zip(levels, map(to_json, own.T), strict=True))
                for name, own in by_target(prediction, names).items()
            }
        }

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Texts:
        """Returns the JSON of `format_prediction` of each sample."""
        del batch
        return Texts([json(self.format_prediction(row, data.output_names())) for row in samples])

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires what is predicted to fit the horizon and the targets."""
        super().validate_batch(batch, outputs, where)
        shape = np.shape(batch[self.targets])[1:]
        if outputs.shape[1:3] != shape:
            count = 2 if self.distribution else len(self.quantiles)
            raise UserError(
                f"{where}: the model's outputs are for {outputs.shape[1:3]} steps and targets, the "
                f"values {shape}: set model.features to {shape[-1] * count}"
            )

    def _scaled(self, outputs: jax.Array) -> jax.Array:
        """Returns quantiles of the scaled targets, (batch, horizon, targets, quantiles)."""
        if not self.distribution:
            return self._widened(jnp.sort(self._split(outputs, len(self.quantiles)), -1))
        location, spread = self._parameters(outputs)
        levels = jnp.array(self.quantiles)
        if self.distribution == "normal":
            units = jax.scipy.special.ndtri(levels)
        else:
            units = -jnp.sign(levels - 0.5) * jnp.log1p(-2 * jnp.abs(levels - 0.5))
        return location[..., None] + self.interval_scale * spread[..., None] * units

    def _widened(self, quantiles: jax.Array) -> jax.Array:
        """Applies `interval_scale`."""
        middle = quantiles[..., self.quantiles.index(0.5), None]
        return middle + self.interval_scale * (quantiles - middle)

    def _split(self, outputs: jax.Array, count: int) -> jax.Array:
        width = outputs.shape[-1]
        if width % count:
            raise UserError(
                f"the model has {width} outputs for each step, where {type(self).__name__} needs "
                f"{count} for each target: set model.features to {count} times their number"
            )
        return outputs.astype(jnp.float32).reshape(*outputs.shape[:-1], width // count, count)

    def _parameters(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns location and scale of the distribution, (batch, horizon, targets)."""
        found = self._split(outputs, 2)
        return found[..., 0], LEAST_DEVIATION + jax.nn.softplus(found[..., 1])

    def _pinball(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        found = self._split(outputs, len(self.quantiles))
        return _pinball(found, y[..., None], jnp.array(self.quantiles)).mean(-1)

    def _likelihood(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the negative log likelihood in nats."""
        location, spread = self._parameters(outputs)
        if self.distribution == "normal":
            return -jax.scipy.stats.norm.logpdf(y, location, spread)
        return -jax.scipy.stats.laplace.logpdf(y, location, spread)

    def _naive(self, batch: Batch) -> list[tuple[str, jax.Array]]:
        """Returns the naive forecasts, (batch, horizon, targets) each."""
        value = batch["value"]
        past, horizon, count = batch["past"], value.shape[1], value.shape[2]
        last = jnp.broadcast_to(batch["offset"][:, None], value.shape)
        steps = past.shape[1] - self.season + np.arange(horizon) % self.season
        season = batch["offset"][:, None] + batch["scale"][:, None] * past[:, steps, :count]
        return [("last_value", last), ("last_season", season)]


def by_target(steps: Any, names: Sequence[str]) -> dict[str, Any]:
    """Returns arrays (horizon, targets, ...) by target; unless names fit, they are numbers."""
    steps = np.moveaxis(np.asarray(steps), 1, 0)
    names = names if len(names) == len(steps) else [str(place) for place in range(len(steps))]
    return dict(zip(names, steps, strict=True))


def _pinball(found: jax.Array, value: jax.Array, levels: jax.Array) -> jax.Array:
    error = value - found
    return jnp.maximum(levels * error, (levels - 1) * error)


def in_own_unit(scaled: jax.Array, batch: Batch) -> jax.Array:
    """Undoes the scaling of windows, (batch, horizon, targets, quantiles)."""
    return batch["offset"][:, None, :, None] + batch["scale"][:, None, :, None] * scaled
