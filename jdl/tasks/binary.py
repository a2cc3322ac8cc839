"""Binary classification: one of two classes per example, from one logit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean, Metrics
from jdl.state import TrainState
from jdl.tasks.base import Task, forward
from jdl.tasks.classification import check_class_weights
from jdl.typing import Batch, Json, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class BinaryClassification(Task):
    """Sigmoid cross-entropy on logits (batch, 1) with labels (batch,) that are 0 or 1.

    Metrics: `loss` in nats and `accuracy` as a fraction. The training loss is a mean weighted by
    `class_weights`; no metric is.
    """

    class_weights: tuple[float, ...] = ()  # of the examples of 0 and of 1; none given: alike

    def __post_init__(self) -> None:
        check_class_weights(self.class_weights)
        if len(self.class_weights) not in (0, 2):
            raise UserError(
                f"class_weights needs a weight for 0 and one for 1, not {self.class_weights}"
            )

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """`loss` and `accuracy`."""
        right = (outputs[:, 0] > 0) == (batch[self.targets] > 0)
        return {
            "loss": Mean.of(self._cross_entropy(outputs, batch), batch["mask"]),
            "accuracy": Mean.of(right.astype(jnp.float32), batch["mask"]),
        }

    def loss(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, key: Key
    ) -> tuple[jax.Array, jax.Array, dict[str, PyTree], Metrics]:
        """See `Task.loss`; the weight is that of the unmasked examples, each 1 unless by class."""
        outputs, collections = forward(
            model, params, state.collections, batch[self.inputs], train=True, key=key
        )
        weights = batch["mask"]
        if self.class_weights:
            weights = weights * jnp.asarray(self.class_weights)[batch[self.targets].astype(int)]
        loss = Mean.of(self._cross_entropy(outputs, batch), weights)
        return loss.total, loss.count, collections, self.loss_and_metrics(outputs, batch)

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Probability of class 1, (batch,) float32."""
        logits, _ = forward(model, state.params, state.collections, batch[self.inputs], train=False)
        return jax.nn.sigmoid(logits[:, 0].astype(jnp.float32))

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """The likelier class, by name or number, and the `probability` of class 1."""
        chosen = int(prediction > 0.5)
        shown = names[chosen] if len(names) == 2 else chosen
        return {"prediction": shown, "probability": round(float(prediction), 6)}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also raises where labels are neither 0 nor 1."""
        super().validate_batch(batch, outputs, where)
        labels = np.asarray(batch[self.targets])
        wrong = np.flatnonzero((labels != 0) & (labels != 1)) if labels.ndim == 1 else [0]
        if len(wrong):
            raise UserError(
                f"{where}: {self.targets!r} holds {labels[wrong[0]]} at row {wrong[0]}, where "
                f"binary classification needs 0 or 1 per example"
            )

    def _cross_entropy(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        labels = batch[self.targets].astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(outputs[:, 0].astype(jnp.float32), labels)
