"""The base class of tasks: a task turns a model and a batch into gradients and metrics."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.files import to_json as json
from jdl.media import Images, Media, Texts
from jdl.metrics import HIGHER_IS_BETTER, Mean, Metric, Metrics
from jdl.metrics.metric import check_metrics
from jdl.state import TrainState
from jdl.tasks.calibration import Calibration
from jdl.tasks.forward import forward, initialize, sown_terms
from jdl.tasks.gradients import ascent, check_dtypes
from jdl.tasks.outputs import count_rows, to_json
from jdl.tasks.probes import Probe, check_probes
from jdl.tasks.terms import (
    DENOMINATORS,
    ROWS,
    SOWN,
    SUPERVISED,
    Terms,
    check_terms,
    combine,
    counts,
    total,
)
from jdl.tasks.views import View
from jdl.tracing import takes_argument
from jdl.typing import Batch, Json, Key, PyTree

STRENGTH = "edit_strength"
"""Name, in a batch of images to edit, of the shares of the path by which they are changed."""

LABEL = "sample_label"
"""Name, in a batch to sample, of the class of each row, for tasks that have `num_classes`."""

EDITED = "segmentation_mask"
"""Name in it of the pixels to draw anew, so that transforms move them with the image."""


@dataclass(frozen=True)
class HostMetrics:
    """Metrics computed on the host from the predictions for a whole split."""

    metrics: Mapping[str, float]  # by name, added to those of `Task.evaluate`
    signatures: Mapping[str, str]  # by name: which variant of the metric, such as SacreBLEU's
    lines: Sequence[str] = ()  # the predictions as text, one line per example; (): none are kept


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem as pure functions over the arrays of a batch.

    A subclass defines `loss_and_metrics`, and `to_prediction` if its predictions are not the
    model's outputs. It overrides `batch_metrics` and `predict` if they need more than the model's
    output for `inputs`, `loss` if the training objective is not one of the metrics, and `gradient`
    if there is no single loss, as in a game with one loss per player. A game also overrides
    `evaluate` (the guide "Custom tasks" has a complete one).
    """

    inputs: str | tuple[str, ...] = "image"  # name of the model's input in a batch, or of several
    targets: str = "label"  # name of the array to predict
    metrics: tuple[Metric, ...] = ()  # further metrics, of predictions and targets
    probes: tuple[Probe, ...] = ()  # classifiers of predictions, fitted to training examples
    sown_losses: tuple[str, ...] = ()  # collections whose sown values are added to the loss
    inactive_layers: tuple[str, ...] = ()  # dropout and batch norm that training may leave inactive
    labeled: str | None = None  # name of a bool array, as of a stream: rows with targets; None: all
    loss_terms: Terms = ()
    """Pairs of a metric and its weight: training minimizes the weighted sum of these means, each
    over its own elements of the whole batch. Evaluation has that `loss` where it has all terms. Of
    `loss_and_metrics`, `loss` is the term `supervised`; sown losses are a further one, `sown`.
    (): the metric `loss`."""
    views: tuple[View, ...] = ()
    """Views of each image, such as `MIRROR`, over which evaluation and prediction average the
    model's outputs (test-time augmentation); (): the image itself."""

    calibration: Calibration | None = None
    """Map of a classifier's logits in evaluation and prediction; `jdl.open` sets that of a run that
    `jdl calibrate` calibrated. None: no map."""

    any_size: bool = False
    """Whether the model takes images of any size: those to predict from then keep theirs, where
    `Resize` and `RandomResizedCrop` bring training images to one."""

    any_length: ClassVar[bool] = False
    """Whether the model also takes longer token sequences than those of training."""

    couples_rows: ClassVar[bool] = False
    """Whether the loss of a row depends on other rows of the batch, as a contrastive one does.

    `num_microbatches` is then refused, and under `pmap` each device computes the whole batch."""

    unconditional: ClassVar[bool] = False
    """Whether `sample` needs no examples: its batch then has inputs of zeros, and no others."""

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        check_probes(self.probes)
        check_terms(self.loss_terms)
        for field, names in (
            ("loss_terms", ("loss", "gradient")),
            ("labeled", ("batch_metrics", "gradient")),
            ("views", ("batch_metrics", "predict")),
        ):
            own = [n for n in names if getattr(type(self), n) != getattr(Task, n)]
            if getattr(self, field) and own:
                raise UserError(
                    f"task.{field} has no effect on {type(self).__name__}, which defines its own "
                    f"{own[0]}"
                )
        if type(self).further_terms is not Task.further_terms and not self.loss_terms:
            raise UserError(
                f"{type(self).__name__} defines further_terms: set task.loss_terms to the names of "
                f"these and of 'supervised', each with its weight"
            )
        if self.views and self.sown_losses:
            raise UserError(
                f"task.views has no effect on {type(self).__name__}, which has sown_losses"
            )

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """Initializes `params` and other collections for inputs like `batch`."""
        inputs, named = self.model_inputs(model, batch)
        return initialize(model, key, *inputs, **named)

    @functools.cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs in a batch."""
        return (self.inputs,) if isinstance(self.inputs, str) else self.inputs

    @property
    def required_names(self) -> tuple[str, ...]:
        """Names of the arrays that a batch must have."""
        return (*self.input_names, self.targets, *([self.labeled] if self.labeled else []))

    def model_inputs(
        self, model: nn.Module, batch: Batch
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the model's positional and keyword inputs.

        Several inputs are passed by name if the module's `__call__` takes all names, else in order.
        """
        values = {name: batch[name] for name in self.input_names}
        if len(values) > 1 and all(takes_argument(model, name) for name in values):
            return (), values
        return tuple(values.values()), {}

    def loss_and_metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Computes mergeable metrics from the model's outputs; rows with `mask` False never count.

        Training minimizes `loss`, a `Mean`, or the sum of `loss_terms`.
        """
        raise NotImplementedError

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
        """Applies the model to a batch; returns mergeable metrics and the updated collections."""
        outputs, collections = self._apply(model, params, state, batch, train=train, key=key)
        counted = batch
        if self.labeled:
            counted = {**batch, "mask": batch["mask"] & batch[self.labeled]}
        metrics = {
            **self.loss_and_metrics(outputs, counted),
            **self.further_metrics(outputs, counted, train=train),
        }
        if train:
            metrics |= self.further_terms(model, params, state, batch, outputs, key)
        return metrics, collections

    def further_terms(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        outputs: Any,
        key: Key | None,
    ) -> dict[str, Mean]:
        """Computes terms of the training loss beside `supervised`, by default none.

        Their weights are those of `loss_terms`. They are of all rows, also if not `labeled`.

        Args:
          model: the network.
          params: its parameters, which a gradient is taken for.
          state: of the run.
          batch: arrays (batch, ...).
          outputs: the model's for the batch, in training mode.
          key: of this step, as for `forward`.
        """
        del model, params, state, batch, outputs, key
        return {}

    def further_metrics(self, outputs: Any, batch: Batch, *, train: bool) -> dict[str, Any]:
        """Computes `metrics` of a batch, in training without those of evaluations only."""
        wanted = [m for m in self.metrics if not train or (m.in_training and m.merge == "sum")]
        if not wanted:
            return {}
        prediction, targets = self.to_prediction(outputs, batch), self.target(batch)
        return {m.name: m.of(prediction, targets, batch["mask"]) for m in wanted}

    def to_prediction(self, outputs: Any, batch: Batch) -> Any:
        """Converts the model's outputs to the prediction for each row; by default these are it."""
        del batch
        return outputs

    def target(self, batch: Batch) -> Any:
        """Returns what `metrics` compare predictions with: by default the array `targets`."""
        return batch[self.targets]

    def loss(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, key: Key
    ) -> tuple[jax.Array, jax.Array, dict[str, PyTree], Metrics]:
        """Computes the training loss of a batch: by default the metric `loss`.

        That includes what the model sows into `sown_losses`, as in evaluation. Of `loss_terms`, a
        training step gives their counts in the whole batch as `denominators`; without these they
        are the batch's own.

        Returns:
          total: the loss summed over all unmasked elements, a float32 scalar.
          weight: the number of those elements (examples, tokens), a float32 scalar.
          collections: the model's updated collections.
          metrics: mergeable metrics of this batch.
        """
        metrics, collections = self._all_metrics(model, params, state, batch, train=True, key=key)
        if self.loss_terms:
            own = counts(self._terms, metrics, batch)
            whole = batch.get(DENOMINATORS, own)
            value = total(self._terms, metrics["loss"], whole)
            return value, own[ROWS], collections, metrics
        if "loss" not in metrics:
            raise UserError(
                f"{type(self).__name__} has no metric 'loss', which training minimizes (it has "
                f"{', '.join(metrics)}): return it from loss_and_metrics, or define loss"
            )
        return metrics["loss"].total, metrics["loss"].count, collections, metrics

    def term_counts(
        self, model: nn.Module, state: TrainState, batch: Batch, key: Key
    ) -> tuple[dict[str, jax.Array], dict[str, PyTree]]:
        """Returns the count of each of `loss_terms` in a training batch, and the collections."""
        found, collections = self._all_metrics(
            model, state.params, state, batch, train=True, key=key
        )
        return counts(self._terms, found, batch), collections

    def gradient(
        self, model: nn.Module, state: TrainState, batch: Batch, key: Key
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], Metrics]:
        """Computes the gradient of the total of `loss`, which the step divides by the weight.

        Returns:
          gradients: of the total, shaped like `state.params`.
          weight: a scalar, or a tree of scalars that is a prefix of `gradients` (one per player).
          collections, metrics: as in `loss`.
        """

        def total(params: PyTree) -> tuple[jax.Array, Any]:
            value, *rest = self.loss(model, params, state, batch, key)
            return value, rest

        check_dtypes(state.params)
        gradients, (weight, collections, metrics) = jax.grad(total, has_aux=True)(state.params)
        return ascent(gradients), weight, collections, metrics

    def evaluate(self, model: nn.Module, state: TrainState, batch: Batch) -> Metrics:
        """Computes mergeable metrics of a batch in evaluation mode.

        Raises:
          UserError: they lack one of `metrics`.
        """
        found, _ = self._all_metrics(model, state.params, state, batch, train=False)
        if missing := [metric.name for metric in self.metrics if metric.name not in found]:
            raise UserError(
                f"{type(self).__name__} does not compute {missing[0]}, which is in task.metrics: "
                f"let batch_metrics also return self.further_metrics(outputs, batch, train=train)"
            )
        return found

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns the prediction for each row of a batch."""
        outputs, _ = self._apply(model, state.params, state, batch, train=False)
        return self.to_prediction(outputs, batch)

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns what the model makes for each row of a batch: by default its prediction.

        A generative model draws from `row_keys(batch)`.
        """
        return self.predict(model, state, batch)

    def edit(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns each row's image with changes, if the task can do that.

        Args:
          model: of the run.
          state: of the run.
          batch: images; `EDITED`, uint8 (batch, height, width, 1), above 0 for pixels to draw anew,
            absent if that is all of them; `STRENGTH` (batch,), equal in all rows.
        """
        raise UserError(f"the task {type(self).__name__} cannot edit images")

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Media:
        """Converts samples to images, texts or sounds.

        By default arrays (samples, height, width, channels) with 1, 3 or 4 channels are images, and
        others texts: the JSON of `format_prediction`.

        Args:
          samples: the output of `sample`, (samples, ...) NumPy arrays.
          batch: the examples that they are of, before the device transforms.
          data: the data set.
        """
        del batch
        if np.ndim(samples) == 4 and np.shape(samples)[3] in (1, 3, 4):
            return Images(np.asarray(samples))
        names = data.output_names()
        rows = (jax.tree.map(lambda x, i=i: x[i], samples) for i in range(count_rows(samples)))
        return Texts([json(self.format_prediction(row, names)) for row in rows])

    def higher_is_better(self, metric: str) -> bool | None:
        """Whether a higher value of a metric is better; None if unknown.

        By default it is known for the usual names and for metric classes that define
        `higher_is_better`; override it for other metrics.
        """
        own = {each.name: each.higher_is_better for each in self.metrics}
        own |= dict.fromkeys((probe.name for probe in self.probes), True)
        return own[metric] if metric in own else HIGHER_IS_BETTER.get(metric)

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether `compute_metrics` is called for a split, which then has to be predicted.

        Raises:
          UserError: a required package is not installed.
        """
        del split, data
        return False

    def host_outputs(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns what `compute_metrics` takes for each row of a batch: by default the prediction.

        Override it where that is less than the prediction, or more.
        """
        return self.predict(model, state, batch)

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes metrics of a whole split that are not means over examples, or need text.

        Args:
          prediction: the output of `host_outputs` for all examples of a split, in order.
          batch: the arrays of those examples, before the device transforms.
          data: the data set of the split.
        """
        raise NotImplementedError

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Converts the prediction for one example to JSON with the key `prediction`.

        Args:
          prediction: the output of `predict` for the example, without the batch axis.
          names: of the classes or targets (`Data.output_names`); empty if they have none.
        """
        del names
        return {"prediction": jax.tree.map(to_json, prediction)}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Validates arrays on the host before they are trained on.

        Args:
          batch: NumPy arrays with the examples along axis 0.
          outputs: shape and dtype of what `predict` returns for the batch.
          where: the arrays' origin for error messages, such as `split 'train'`.

        Raises:
          UserError: an array is missing, or holds a value that cannot be trained on.
        """
        for name in self.required_names:
            if name not in batch:
                known = ", ".join(map(repr, sorted(batch)))
                raise UserError(
                    f"{where} has no array {name!r} (it has {known}): name the arrays with "
                    f"task.inputs and task.targets"
                )
            values = np.asarray(batch[name])
            if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values.reshape(len(values), -1)).all(1))[0, 0])
                raise UserError(f"{where}: {name!r} holds NaN or infinity at row {row}")

    def _apply(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[Any, dict[str, PyTree]]:
        """Applies the model to a batch, in evaluation to all views of it.

        Returns:
          Its outputs, of several views their weighted mean, and the updated collections.
        """

        def apply(inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, PyTree]]:
            return forward(model, params, state.collections, *inputs, train=train, key=key, **named)

        if train or not self.views:
            outputs, collections = apply(*self.model_inputs(model, batch))
            return outputs if train else self._calibrated(outputs), collections
        inputs = [self.model_inputs(model, view(batch)) for view in self.views]
        # A loop over the views, so that the model is compiled once, and the activations of one view
        # are in memory at a time.
        outputs = jax.lax.map(
            lambda each: apply(*each)[0], jax.tree.map(lambda *views: jnp.stack(views), *inputs)
        )
        return self._calibrated(self.average_views(outputs, batch)), state.collections

    def _calibrated(self, outputs: Any) -> Any:
        return outputs if self.calibration is None else self.calibration(outputs)

    def average_views(self, outputs: Any, batch: Batch) -> Any:
        """Averages the model's outputs for the views by their weights.

        Override it if a view changes the outputs, as a mirror does those of pixels.

        Args:
          outputs: (views, batch, ...).
          batch: the whole images.
        """
        del batch
        weights = jnp.array([view.weight for view in self.views])
        mean = functools.partial(jnp.tensordot, weights / weights.sum(), axes=1)
        return jax.tree.map(mean, outputs)

    def _all_metrics(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, **mode: Any
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """Returns `batch_metrics`, with the loss of `loss_terms`, and `sown_losses` added to it."""
        sown: dict[str, PyTree] = {name: {} for name in self.sown_losses}
        if sown:
            state = dataclasses.replace(state, collections={**state.collections, **sown})
        metrics, collections = self.batch_metrics(model, params, state, batch, **mode)
        if sown:
            term = sown_terms(collections, self.sown_losses, len(batch["mask"]))
            collections = {k: v for k, v in collections.items() if k not in sown}
            if self.loss_terms:
                rows = batch["mask"].sum(dtype=jnp.float32)
                metrics = {**metrics, SOWN: Mean(term * rows, rows)}
            elif (loss := metrics.get("loss")) is not None:
                loss = dataclasses.replace(loss, total=loss.total + term * loss.count)
                metrics = {**metrics, "loss": loss}
        if SUPERVISED in dict(self.loss_terms) and SUPERVISED not in metrics:
            metrics = {SUPERVISED if k == "loss" else k: v for k, v in metrics.items()}
        if self.loss_terms and (mode["train"] or all(n in metrics for n, _ in self._terms)):
            metrics = {**metrics, "loss": combine(self._terms, metrics)}
        return metrics, collections

    @property
    def _terms(self) -> Terms:
        """All terms of the loss."""
        return (*self.loss_terms, *([(SOWN, 1.0)] if self.sown_losses else []))
