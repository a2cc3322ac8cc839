"""Embeddings of examples, from labels or from two views of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.embedding_losses import EmbeddingLoss, NTXent
from jdl.tasks.forward import forward
from jdl.tasks.views import training_view
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Embedding(Task):
    """Learns a vector for each example, from two views of it (`Views(2)`) and perhaps its label.

    Without labels: SimCLR (`NTXent`), `VICReg`, `BarlowTwins`; with them supervised contrastive
    learning (`SupCon`). The objective is computed of the model's outputs (batch, features). The
    prediction is the output of the model's method `encode` if it has one, as `Projected`, else of
    the model, for view 0. What it is good for is measured by `probes` and by `metrics` of
    embeddings, such as `EqualErrorRate` and `RecallAtK`.

    Metrics: `loss`. In evaluation, where the views are equal, it does not tell how good the
    embeddings are.
    """

    objective: EmbeddingLoss = NTXent()  # the loss of the two embeddings of each example

    couples_rows: ClassVar[bool] = True

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`: targets only where they are read."""
        reads_labels = self.objective.needs_labels or self.metrics or self.probes
        return super().required_names if reads_labels else self.input_names

    def model_inputs(
        self, model: nn.Module, batch: Batch
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the model's inputs of view 0."""
        return super().model_inputs(model, training_view(batch, self.input_names, 0))

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
        """See `Task.batch_metrics`; one forward pass of all views."""
        training_view(batch, self.input_names, 0)
        flat = {n: batch[n].reshape(-1, *batch[n].shape[2:]) for n in self.input_names}
        inputs, named = super().model_inputs(model, {**batch, **flat})
        outputs, collections = forward(
            model, params, state.collections, *inputs, train=train, key=key, **named
        )
        views = outputs.reshape(len(batch["mask"]), 2, *outputs.shape[1:])
        labels = batch[self.targets] if self.objective.needs_labels else None
        metrics: dict[str, Any] = {"loss": self.objective(views, labels, batch["mask"])}
        if not train and self.metrics:
            metrics |= self.further_metrics(self.predict(model, state, batch), batch, train=False)
        return metrics, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns embeddings, (batch, features) float32."""
        inputs, named = self.model_inputs(model, batch)
        method = "encode" if hasattr(type(model), "encode") else "__call__"
        found, _ = forward(
            model, state.params, state.collections, *inputs, train=False, method=method, **named
        )
        return found.reshape(len(found), -1).astype(jnp.float32)

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires one integer label for each example, where labels are read."""
        super().validate_batch(batch, outputs, where)
        if self.targets in self.required_names:
            check_class_labels(np.asarray(batch[self.targets]), self.targets, where)


def check_class_labels(labels: np.ndarray, name: str, where: str) -> None:
    """Raises a UserError unless these are integers (examples,)."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {name!r} is {labels.dtype} of shape {labels.shape[1:]} for an example, and "
            f"embeddings are compared by one integer label: name it with task.targets"
        )
