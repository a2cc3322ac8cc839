"""Diffusion and flow matching: generation by reversing a path from data to noise."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.diffusion import Denoise, Heun, LinearPath, NoisePath, Sampler, Target, repaint
from jdl.diffusion.samplers import draw
from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import EDITED, STRENGTH, HostMetrics, Task
from jdl.tasks.forward import forward, initialize
from jdl.tasks.labels import check_labels, draw_labels
from jdl.tasks.randomness import row_keys
from jdl.tasks.scores import SampleScores
from jdl.typing import Batch, Key, Keys, PyTree


@dataclass(frozen=True, kw_only=True)
class Diffusion(Task):
    """Squared error of what a model predicts of arrays mixed with noise, a time drawn for each row.

    By default that is rectified flow (Liu et al., 2023), and with `CosinePath()` or
    `VariancePreserving()` and `prediction="noise"` or `"v"` a diffusion model. The model's
    `__call__(x, time, condition)` maps x (batch, ...) and times (batch,) from 0 to 1 to an array of
    x's shape. With `num_classes` it gets a one-hot `condition` (batch, num_classes), all zeros
    where the class is left out, else None.

    Samples, which are also the predictions, are made by `sampler`, with `num_classes` of the row's
    class, or of one drawn uniformly, under classifier-free guidance (Ho and Salimans, 2022).
    Metrics: `loss`, the mean over elements of the squared error, and in evaluation those of
    `scores`, and of `metrics`, which compare samples with `targets`.
    """

    targets: str = "image"  # name of the arrays that `metrics` compare samples with
    path: NoisePath = LinearPath()  # from data to noise
    prediction: Target = "velocity"  # what the model predicts
    value_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value of the data, mapped to -1 and 1; samples are cut off there."""
    num_classes: int = 0  # classes to condition on; 0: none
    labels: str = "label"  # name of the classes in a batch
    condition_dropout: float = 0.1  # rate at which training leaves the class out, for guidance
    guidance_scale: float = 1.0
    """w of guidance: the prediction without class, plus w times what the class changes in it."""
    sampler: Sampler = Heun(16)  # of samples, and of edited images without a mask
    scores: SampleScores | None = None  # of samples, in evaluations of its splits
    resamplings: int = 4  # times that inpainting takes each step (Lugmayr et al., 2022)

    unconditional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.value_range[0] < self.value_range[1]:
            raise UserError(f"task.value_range must rise, which {self.value_range} does not")
        if self.prediction == "noise" and self.path.ends_in_noise:
            raise UserError(
                f"task.prediction='noise' says nothing about the data at the end of "
                f"{type(self.path).__name__}, where sampling begins: predict 'velocity' or 'v', or "
                f"take another path"
            )
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(
                f"task.condition_dropout must be in [0, 1], not {self.condition_dropout}"
            )
        if self.guidance_scale != 1 and not self.num_classes:
            raise UserError(
                f"task.guidance_scale={self.guidance_scale} has no effect without classes: set "
                f"task.num_classes"
            )
        if self.num_classes < 0 or self.resamplings < 1:
            raise UserError(
                f"task.num_classes must be at least 0, and task.resamplings 1, not "
                f"{self.num_classes} and {self.resamplings}"
            )

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`."""
        labels = (self.labels,) if self.num_classes else ()
        return (*self.input_names, *labels, *((self.targets,) if self.metrics else ()))

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`."""
        x = self._data(batch)
        condition = jnp.zeros((len(x), self.num_classes)) if self.num_classes else None
        return initialize(model, key, x, jnp.zeros(len(x)), condition)

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
        """See `Task.batch_metrics`."""
        data, keys = self._data(batch), row_keys(batch)
        noise, (times, dropped) = draw(keys, data.shape[1:]), self._draws(row_keys(batch, 1))
        condition = None
        if self.num_classes:
            condition = jax.nn.one_hot(batch[self.labels], self.num_classes)
            condition = jnp.where(dropped[:, None] & train, 0.0, condition)
        x = self.path.point(data, noise, times)
        variables = params, state.collections
        found, new = _apply(model, variables, x, times, condition, train=train, key=key)
        errors = jnp.square(found - self.path.target(self.prediction, data, noise, times))
        metrics: dict[str, Any] = {
            "loss": Mean.of(errors.mean(tuple(range(1, errors.ndim))), batch["mask"])
        }
        if self.metrics and not train:
            samples = self.sample(model, dataclasses.replace(state, params=params), batch)
            metrics |= {
                each.name: each.of(samples, self.target(batch), batch["mask"])
                for each in self.metrics
            }
        return metrics, new

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns a sample for each row, whatever its arrays."""
        return self.sample(model, state, batch)

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns a sample for each row, (batch, ...) float32 in `value_range`.

        It is of the batch's classes, or of classes drawn uniformly if that has none.
        """
        x = draw(row_keys(batch), self._data(batch).shape[1:])
        denoise = self._denoise(model, state, self._classes(batch))
        return self._values(self.sampler(denoise, self.path, x, row_keys(batch, 1)))

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """See `Task.has_host_metrics`: those of `scores`."""
        return self.scores is not None and split in self.scores.splits

    def host_outputs(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """See `Task.host_outputs`: what `scores` reads."""
        assert self.scores is not None
        samples = self.sample(model, state, batch)
        return self.scores.outputs(state, samples, batch[self.input_names[0]])

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """See `Task.compute_metrics`: the scores of samples."""
        assert self.scores is not None
        labels = batch[self.labels] if self.num_classes else None
        return self.scores.compute_metrics(prediction, data, labels)

    def edit(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns each row's image with changes, (batch, ...) float32 in `value_range`.

        Without a mask, noise is added up to the share `strength` of the path and removed again:
        SDEdit (Meng et al., 2022). With one, its pixels are drawn anew, and the others returned
        exactly (`jdl.diffusion.repaint`).
        """
        data, keys = self._data(batch), row_keys(batch)
        start = batch[STRENGTH][0] * self.path.end
        if self.num_classes and not self.condition_dropout:
            raise UserError(
                "an image is edited without its class, which a model trained with "
                "task.condition_dropout=0 cannot leave out: train with some"
            )
        denoise = self._denoise(model, state, None)
        x, keys = self.path.point(data, draw(keys, data.shape[1:]), start), row_keys(batch, 1)
        if EDITED not in batch:
            return self._values(self.sampler(denoise, self.path, x, keys, start))
        mask = batch[EDITED] > 0
        found = repaint(
            denoise, self.path, x, keys, image=data, mask=mask, start=start,
            num_steps=self.sampler.num_steps, resamplings=self.resamplings,
        )  # fmt: skip
        return jnp.where(mask, self._values(found), batch[self.input_names[0]])

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires classes from 0 to `num_classes` - 1."""
        super().validate_batch(batch, outputs, where)
        if not self.num_classes:
            return
        check_labels(
            np.asarray(batch[self.labels]),
            self.num_classes,
            where,
            name=self.labels,
            task="Diffusion with classes",
            origin=f"task.num_classes is {self.num_classes}",
        )

    def _data(self, batch: Batch) -> jax.Array:
        """Returns the arrays in the range of the path, from -1 to 1."""
        values = batch[self.input_names[0]]
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise UserError(
                f"Diffusion needs floats in task.value_range {self.value_range}, not "
                f"{values.dtype}: add jdl.data.Scale() to data.device_transforms"
            )
        low, high = self.value_range
        return (values.astype(jnp.float32) - low) * (2 / (high - low)) - 1

    def _values(self, data: jax.Array) -> jax.Array:
        """Inverts `_data`, and cuts off values that are out of range."""
        low, high = self.value_range
        return low + (high - low) * (data.clip(-1, 1) + 1) / 2

    def _draws(self, keys: Keys) -> tuple[jax.Array, jax.Array]:
        """Returns the time of each row, and whether its class is left out."""

        def one(key: Key) -> tuple[jax.Array, jax.Array]:
            first, second = jax.random.split(key)
            time = jax.random.uniform(first, minval=self.path.begin, maxval=self.path.end)
            return time, jax.random.bernoulli(second, self.condition_dropout)

        return jax.vmap(one)(keys)

    def _denoise(self, model: nn.Module, state: TrainState, classes: jax.Array | None) -> Denoise:
        """Returns the model as samplers call it, of classes (batch,); None leaves them out."""
        labels, variables = None, (state.params, state.collections)
        if classes is not None:
            labels = jax.nn.one_hot(classes, self.num_classes)
        is_guided = labels is not None and self.guidance_scale != 1

        def denoise(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            condition = labels
            if condition is None and self.num_classes:
                condition = jnp.zeros((len(x), self.num_classes))
            elif condition is not None and is_guided:
                condition = jnp.concatenate([condition, jnp.zeros_like(condition)])
            given = jnp.concatenate([x, x]) if is_guided else x
            times = jnp.broadcast_to(t, len(given))
            found, _ = _apply(model, variables, given, times, condition, train=False)
            if is_guided:
                known, free = jnp.split(found, 2)
                found = free + self.guidance_scale * (known - free)
            return self.path.data_and_noise(self.prediction, found, x, t)

        return denoise

    def _classes(self, batch: Batch) -> jax.Array | None:
        """Returns the class of each row, drawn by its key if the batch has none; None: no class."""
        if not self.num_classes or self.labels in batch:
            return batch[self.labels] if self.num_classes else None
        return draw_labels(row_keys(batch, 2), self.num_classes)


def _apply(
    model: nn.Module,
    variables: tuple[PyTree, dict[str, PyTree]],
    x: jax.Array,
    times: jax.Array,
    condition: jax.Array | None,
    **mode: Any,
) -> tuple[jax.Array, dict[str, PyTree]]:
    """Returns what a model predicts at points of a path, and its collections.

    Raises:
      UserError: the output is not of the points' shape.
    """
    found, new = forward(model, *variables, x, times, condition, **mode)
    if jnp.shape(found) != x.shape:
        raise UserError(
            f"{type(model).__name__} maps arrays of shape {x.shape[1:]} to {found.shape[1:]}, "
            f"where Diffusion needs the same shape"
        )
    return found, new
