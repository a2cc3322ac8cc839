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
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import Task, forward
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class BinaryClassification(Task):
    """Sigmoid cross-entropy on logits (batch, 1) with labels (batch,) that are 0 or 1.

    Metrics: `loss` in nats and `accuracy` as a fraction.
    """

    def measure(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """`loss` and `accuracy`."""
        labels = batch[self.targets].astype(jnp.float32)
        logits = outputs[:, 0].astype(jnp.float32)
        right = (logits > 0) == (labels > 0)
        return {
            "loss": Mean.of(optax.sigmoid_binary_cross_entropy(logits, labels), batch["mask"]),
            "accuracy": Mean.of(right.astype(jnp.float32), batch["mask"]),
        }

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Probability of class 1, (batch,) float32."""
        logits, _ = forward(model, state.params, state.collections, batch[self.inputs], train=False)
        return jax.nn.sigmoid(logits[:, 0].astype(jnp.float32))

    def describe(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """The likelier class, by name or number, and the `probability` of class 1."""
        chosen = int(prediction > 0.5)
        shown = names[chosen] if len(names) == 2 else chosen
        return {"prediction": shown, "probability": round(float(prediction), 6)}

    def check(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also raises where labels are neither 0 nor 1."""
        super().check(batch, outputs, where)
        labels = np.asarray(batch[self.targets])
        wrong = np.flatnonzero((labels != 0) & (labels != 1)) if labels.ndim == 1 else [0]
        if len(wrong):
            raise UserError(
                f"{where}: {self.targets!r} holds {labels[wrong[0]]} at row {wrong[0]}, where "
                f"binary classification needs 0 or 1 per example"
            )
