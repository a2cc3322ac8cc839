"""Multi-label classification: any number of classes per example."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.tasks.base import Task
from jdl.tasks.outputs import one_array
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(Task):
    """Sigmoid cross-entropy on logits (batch, classes) with labels of that shape, 0 or 1.

    Metrics, means over examples and classes: `loss`, in nats, weighted by `positive_weights`; and
    `accuracy`, the fraction of labels that are right. The metric `AveragePrecision` ranks the
    examples of each class.
    """

    positive_weights: tuple[float, ...] = ()  # weight of each class's label 1; (): all 1
    threshold: float = 0.5  # probability above which a class is predicted

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < weight < math.inf for weight in self.positive_weights):
            raise UserError(f"positive_weights are finite and above 0, not {self.positive_weights}")
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold is a probability in (0, 1), not {self.threshold}")

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss` and `accuracy`."""
        chosen = jax.nn.sigmoid(outputs.astype(jnp.float32)) > self.threshold
        right = (chosen == (batch[self.targets] > 0)).astype(jnp.float32)
        each = jnp.broadcast_to(batch["mask"][:, None], outputs.shape)
        return {"loss": self.objective(outputs, batch), "accuracy": Mean.of(right, each)}

    def objective(self, outputs: jax.Array, batch: Batch) -> Mean:
        """Computes the training loss; override it to train on another, such as the focal loss."""
        logits, labels = outputs.astype(jnp.float32), batch[self.targets].astype(jnp.float32)
        losses = optax.sigmoid_binary_cross_entropy(logits, labels)
        if self.positive_weights:
            losses = losses * jnp.where(labels > 0, jnp.asarray(self.positive_weights), 1.0)
        return Mean.of(losses, jnp.broadcast_to(batch["mask"][:, None], losses.shape))

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the probability of each class, (batch, classes) float32."""
        del batch
        return jax.nn.sigmoid(one_array(outputs, self).astype(jnp.float32))

    def target(self, batch: Batch) -> jax.Array:
        """Returns labels, (batch, classes) int32."""
        return batch[self.targets].astype(jnp.int32)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the predicted classes by name or number, and all `probabilities`."""
        chosen = np.flatnonzero(np.asarray(prediction) > self.threshold).tolist()
        known = len(names) == len(prediction)
        return {
            "prediction": [names[each] if known else each for each in chosen],
            "probabilities": [round(float(share), 6) for share in prediction],
        }

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires labels of the outputs' shape that are 0 or 1."""
        super().validate_batch(batch, outputs, where)
        labels, shape = np.asarray(batch[self.targets]), outputs.shape[1:]
        if labels.shape[1:] != shape or len(shape) != 1:
            raise UserError(
                f"{where}: {self.targets!r} has shape {labels.shape[1:]} per example and the "
                f"model's output {shape}, where multi-label classification needs one label and one "
                f"logit per class, (classes,)"
            )
        wrong = np.argwhere((labels != 0) & (labels != 1))
        if len(wrong):
            row, column = wrong[0]
            raise UserError(
                f"{where}: {self.targets!r} holds {labels[row, column]} at row {row}, class "
                f"{column}, where a label is 0 or 1"
            )
        if self.positive_weights and (len(self.positive_weights),) != shape:
            raise UserError(
                f"task.positive_weights has {len(self.positive_weights)} weights, the model "
                f"{shape[0]} outputs"
            )
