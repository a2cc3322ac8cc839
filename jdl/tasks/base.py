"""The base class of tasks: a task turns a model and a batch into gradients and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.metrics import HIGHER_IS_BETTER, Metric, Metrics
from jdl.metrics.metric import check_metrics
from jdl.state import TrainState
from jdl.tracing import takes_argument
from jdl.typing import Batch, Json, Key, PyTree


def forward(
    model: nn.Module,
    params: PyTree,
    collections: Mapping[str, PyTree],
    *inputs: Any,
    train: bool,
    key: Key | None = None,
    **named: Any,
) -> tuple[Any, dict[str, PyTree]]:
    """Applies a Flax module.

    Args:
      model: receives `train` if its `__call__` takes it.
      params: the trainable variables.
      collections: the other variables, such as `batch_stats`.
      *inputs: positional inputs of the module.
      train: whether dropout is active and running statistics are updated.
      key: for the `dropout` RNG stream, needed only with `train`.
      **named: keyword inputs; those that the module's `__call__` does not take are dropped.

    Returns:
      The module's output and the updated collections.
    """
    named = _named(model, train=train, **named)
    rngs = {"dropout": key} if train and key is not None else None
    variables = {"params": params, **collections}
    if not train:
        return model.apply(variables, *inputs, **named), dict(collections)
    output, changed = model.apply(
        variables, *inputs, **named, rngs=rngs, mutable=list(collections) or ["batch_stats"]
    )
    return output, {**collections, **changed}


def _named(model: nn.Module, **named: Any) -> Any:
    """Filters keyword arguments down to those that the module's `__call__` takes."""
    return {name: value for name, value in named.items() if takes_argument(model, name)}


@dataclass(frozen=True)
class HostMetrics:
    """Metrics computed on the host from the predictions for a whole split."""

    metrics: Mapping[str, float]  # by name, added to those of `Task.evaluate`
    signatures: Mapping[str, str]  # by name: which variant of the metric, such as SacreBLEU's
    lines: Sequence[str]  # the predictions as text, one line per example


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem as pure functions over the arrays of a batch.

    A subclass defines `loss_and_metrics`, and `to_prediction` if its predictions are not the
    model's outputs. It overrides `batch_metrics` and `predict` if they need more than the model's
    output for `inputs`, `loss` if the training objective is not one of the metrics, and `gradient`
    if there is no single loss, as in a game with one loss per player. A game also overrides
    `evaluate` (the guide "Custom tasks" has a complete one).
    """

    inputs: str = "image"  # name of the model's input in a batch
    targets: str = "label"  # name of the array to predict
    metrics: tuple[Metric, ...] = ()  # further metrics, of predictions and targets

    def __post_init__(self) -> None:
        check_metrics(self.metrics)

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """Initializes `params` and other collections for inputs like `batch`."""
        mode: Any = _named(model, train=False)
        return dict(model.init(key, batch[self.inputs], **mode))

    def loss_and_metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Computes mergeable metrics from the model's outputs; rows with `mask` False never count.

        Training minimizes `loss`, a `Mean`.
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
        outputs, collections = forward(
            model, params, state.collections, batch[self.inputs], train=train, key=key
        )
        metrics = self.loss_and_metrics(outputs, batch)
        return {**metrics, **self.further_metrics(outputs, batch, train=train)}, collections

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

        Returns:
          total: the loss summed over all unmasked elements, a float32 scalar.
          weight: the number of those elements (examples, tokens), a float32 scalar.
          collections: the model's updated collections.
          metrics: mergeable metrics of this batch.
        """
        metrics, collections = self.batch_metrics(model, params, state, batch, train=True, key=key)
        if "loss" not in metrics:
            raise UserError(
                f"{type(self).__name__} has no metric 'loss', which training minimizes (it has "
                f"{', '.join(metrics)}): return it from loss_and_metrics, or define loss"
            )
        return metrics["loss"].total, metrics["loss"].count, collections, metrics

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

        gradients, (weight, collections, metrics) = jax.grad(total, has_aux=True)(state.params)
        return gradients, weight, collections, metrics

    def evaluate(self, model: nn.Module, state: TrainState, batch: Batch) -> Metrics:
        """Computes mergeable metrics of a batch in evaluation mode.

        Raises:
          UserError: they lack one of `metrics`.
        """
        found = self.batch_metrics(model, state.params, state, batch, train=False)[0]
        if missing := [metric.name for metric in self.metrics if metric.name not in found]:
            raise UserError(
                f"{type(self).__name__} does not compute {missing[0]}, which is in task.metrics: "
                f"let batch_metrics also return self.further_metrics(outputs, batch, train=train)"
            )
        return found

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns the prediction for each row of `batch[self.inputs]`."""
        inputs = batch[self.inputs]
        outputs, _ = forward(model, state.params, state.collections, inputs, train=False)
        return self.to_prediction(outputs, batch)

    def higher_is_better(self, metric: str) -> bool | None:
        """Whether a higher value of a metric is better; None if unknown.

        By default it is known for the usual names and for metric classes that define
        `higher_is_better`; override it for other metrics.
        """
        own = {each.name: each.higher_is_better for each in self.metrics}
        return own[metric] if metric in own else HIGHER_IS_BETTER.get(metric)

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether `compute_metrics` is called for a split, which then has to be predicted.

        Raises:
          UserError: a required package is not installed.
        """
        del split, data
        return False

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes metrics of a whole split that are not means over examples, or need text.

        Args:
          prediction: the output of `predict` for all examples of a split, in order.
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
        for name in (self.inputs, self.targets):
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


def to_json(values: Any) -> Json:
    """Converts an array to nested lists, and an array of one element to a number.

    A float32 gets its shortest decimal form: 0.1, not 0.10000000149.
    """
    array = np.asarray(values)
    if array.size == 1:
        (one,) = array.ravel()
        return float(str(one)) if array.dtype.kind == "f" else one.item()
    return [to_json(value) for value in array]
