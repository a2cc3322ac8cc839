"""Forecasting a horizon one step after another, by sample paths."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.files import to_json as json
from jdl.media import Texts
from jdl.state import TrainState
from jdl.tasks.forward import forward
from jdl.tasks.horizon import QuantileForecast, by_target, in_own_unit
from jdl.tasks.outputs import to_json
from jdl.tasks.randomness import row_keys
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class AutoregressiveForecast(QuantileForecast):
    """Forecasts quantiles of sample paths, each step drawn given the one before (DeepAR).

    Salinas et al. (2020). The model, such as `jdl.models.DeepAR`, is trained on the log likelihood
    of each step given the true values before it. A forecast draws `num_samples` paths from it
    (ancestral sampling); targets of one step are drawn independently of each other. In contrast to
    quantiles of each step, paths also tell how a sum or a maximum over the horizon is distributed.

    `jdl sample` writes one path of each window, `sample_paths` returns all. Metrics are those of
    `QuantileForecast`, in evaluation of the quantiles of paths; `loss` is the negative log
    likelihood in nats.
    """

    distribution: Literal["normal", "laplace"] = "normal"  # of a step given those before
    num_samples: int = 100  # paths of each window

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise UserError(f"task.num_samples must be at least 1, not {self.num_samples}")

    def model_inputs(
        self, model: nn.Module, batch: Batch
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns `inputs`, and the true values with whether they are observed."""
        del model
        names = (*self.input_names, self.targets, "observed")
        return tuple(batch[name] for name in names), {}

    def batch_metrics(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """Computes `loss`, and in evaluation the metrics of paths."""
        inputs, _ = self.model_inputs(model, batch)
        outputs, collections = forward(
            model, params, state.collections, *inputs, train=train, key=key
        )
        found: dict[str, Any] = {"loss": self.objective(outputs, batch)}
        if not train:
            paths = self._paths(model, state, batch, self.num_samples)
            found |= self.scores(self._scaled(paths), batch)
            found |= self.further_metrics(paths, batch, train=False)
        return found, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns quantiles in the unit of the series, (batch, horizon, targets, quantiles)."""
        return self.to_prediction(self._paths(model, state, batch, self.num_samples), batch)

    def sample_paths(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns paths in the unit of the series, (batch, num_samples, horizon, targets)."""
        paths = in_own_unit(self._paths(model, state, batch, self.num_samples), batch)
        return jnp.moveaxis(paths, 3, 1)

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns a path of each row in the unit of the series, (batch, horizon, targets)."""
        return in_own_unit(self._paths(model, state, batch, 1), batch)[..., 0]

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Texts:
        """Returns as JSON the values of each path by target."""
        del batch
        paths = [by_target(each, data.output_names()) for each in samples]
        return Texts([json({name: to_json(x) for name, x in path.items()}) for path in paths])

    def _scaled(self, outputs: jax.Array) -> jax.Array:
        """Returns quantiles of paths (..., samples), see `QuantileForecast`."""
        found = jnp.quantile(outputs, jnp.array(self.quantiles), axis=-1)
        return self._widened(jnp.moveaxis(found, 0, -1))

    def _paths(self, model: nn.Module, state: TrainState, batch: Batch, samples: int) -> jax.Array:
        """Draws paths of the scaled targets, (batch, horizon, targets, samples)."""
        apply = functools.partial(forward, model, state.params, state.collections, train=False)
        inputs = (batch[name] for name in self.input_names)
        (context, previous, known), _ = apply(*inputs, method="encode")
        horizon, targets = known.shape[1], previous.shape[2] // 2
        units = {"normal": jax.random.normal, "laplace": jax.random.laplace}[self.distribution]
        draw = functools.partial(units, shape=(samples, horizon, targets))
        noise = jax.vmap(draw)(row_keys(batch)).reshape(-1, horizon, targets)

        def step(carry: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            context, previous = carry
            known, noise = now
            one = jnp.repeat(known, samples, 0)[:, None]
            (outputs, context), _ = apply(context, previous, one, method="decode")
            location, spread = self._parameters(outputs[:, 0])
            value = location + spread * noise
            return (context, jnp.concatenate([value, jnp.ones_like(value)], 1)[:, None]), value

        first = jax.tree.map(lambda x: jnp.repeat(x, samples, 0), (context, previous))
        steps = jnp.swapaxes(known, 0, 1), jnp.swapaxes(noise, 0, 1)
        found = jax.lax.scan(step, first, steps)[1]  # (horizon, batch * samples, targets)
        return jnp.moveaxis(found.reshape(horizon, -1, samples, targets), (0, 2), (1, 3))
