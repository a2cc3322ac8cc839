"""What is learned: a task turns a model and a batch into gradients and scores."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.metrics import Metrics
from jdl.state import TrainState
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
      model: its `__call__` may take `train: bool`; a module that does not is applied alike in
        training and evaluation.
      params: the trainable variables.
      collections: the other variables; those that change in training are returned.
      *inputs: positional inputs of the module.
      train: whether dropout is on and running statistics move.
      key: source of the `dropout` stream, needed only where `train`.
      **named: further inputs, of which the module is given those that its `__call__` names.

    Returns:
      The module's output and the collections after the call.
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
    """Those arguments that the module's `__call__` takes."""
    return {name: value for name, value in named.items() if takes(model, name)}


def takes(model: nn.Module, name: str) -> bool:
    """Whether a module's `__call__` names this argument."""
    return name in inspect.signature(type(model).__call__).parameters


@dataclass(frozen=True)
class Judgement:
    """What is said on the host of all predictions for a split."""

    scores: Mapping[str, float]  # by name, beside the metrics of `Task.evaluate`
    signatures: Mapping[str, str]  # of those scores that are defined in several ways, which it is
    lines: Sequence[str]  # the predictions as text, one for each example


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem as pure functions over the arrays of a batch.

    A subclass defines `measure` and `predict`. It overrides `score` where metrics need more than
    the model's output for `inputs`, `loss` where what is minimised is no metric, and `gradient`
    where there is no one loss, as in a game whose players descend different ones.
    """

    inputs: str = "image"  # name of the model's input in a batch
    targets: str = "label"  # name of what is to be predicted

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """The model's variables, `params` and any further collections, for inputs like `batch`."""
        mode: Any = _named(model, train=False)
        return dict(model.init(key, batch[self.inputs], **mode))

    def measure(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Mergeable metrics of the model's outputs; rows whose `mask` is False never count.

        `loss`, a `Mean`, is what training minimises.
        """
        raise NotImplementedError

    def score(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """Mergeable metrics of one batch, and the model's collections after it."""
        outputs, collections = forward(
            model, params, state.collections, batch[self.inputs], train=train, key=key
        )
        return self.measure(outputs, batch), collections

    def loss(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, key: Key
    ) -> tuple[jax.Array, jax.Array, dict[str, PyTree], Metrics]:
        """The training loss of one batch, kept as a total and a weight.

        Returns:
          total: the loss summed over all unmasked elements, a float32 scalar.
          weight: how many elements that were (examples, tokens), a float32 scalar.
          collections: the model's collections after this batch.
          metrics: mergeable metrics of this batch.
        """
        metrics, collections = self.score(model, params, state, batch, train=True, key=key)
        return metrics["loss"].total, metrics["loss"].count, collections, metrics

    def gradient(
        self, model: nn.Module, state: TrainState, batch: Batch, key: Key
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], Metrics]:
        """The gradient field: what the optimizer is given, before division by the weight.

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
        """Mergeable metrics of one batch; rows whose `mask` is False never count."""
        return self.score(model, state.params, state, batch, train=False)[0]

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """The prediction for each row of `batch[self.inputs]`."""
        raise NotImplementedError

    def judges(self, split: str, data: Data) -> bool:
        """Whether the predictions for a split are to be judged, for which they must be computed.

        Raises:
          UserError: what that needs is not there.
        """
        del split, data
        return False

    def judge(self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data) -> Judgement:
        """Scores that are no means over examples, or need texts; asked for where it `judges`.

        Args:
          prediction: what `predict` gives for all examples of a split, in order.
          batch: the arrays of those examples, before the device transforms.
          data: what the split is one of.
        """
        raise NotImplementedError

    def describe(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """What the prediction for one example says, as JSON with `prediction` in it.

        Args:
          prediction: what `predict` gives for the example, without the axis of the batch.
          names: of the classes or targets (`Data.output_names`); empty where they have none.
        """
        del names
        return {"prediction": jax.tree.map(plain, prediction)}

    def check(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Looks over a batch on the host before it is trained on.

        Args:
          batch: NumPy arrays with the examples along axis 0.
          outputs: shape and dtype of the model's output for the batch.
          where: how an error names the place, such as `split 'train'`.

        Raises:
          UserError: an array is missing, or holds a value that cannot be learned from.
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


def plain(values: Any) -> Json:
    """An array as a number or nested lists; of one element, as that number.

    A float32 takes as few digits as tell it from every other.
    """
    array = np.asarray(values)
    if array.size == 1:
        (one,) = array.ravel()
        return float(str(one)) if array.dtype.kind == "f" else one.item()
    return [plain(value) for value in array]
