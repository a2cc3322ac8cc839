"""Binary classification: one of two classes per example, from one logit."""

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
from jdl.tasks.calibration import ConformalSets
from jdl.tasks.classification import check_class_weights
from jdl.tasks.outputs import one_array
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class BinaryClassification(Task):
    """Sigmoid cross-entropy on logits (batch, 1) with labels (batch,) that are 0 or 1.

    Metrics: `loss`, weighted by `class_weights`, and `nll`, unweighted, both cross-entropies in
    nats; and `accuracy` as a fraction.
    """

    class_weights: tuple[float, ...] = ()  # weights of classes 0 and 1; (): both 1
    conformal: ConformalSets | None = None  # sets of classes to predict; set as `calibration` is

    def __post_init__(self) -> None:
        super().__post_init__()
        check_class_weights(self.class_weights)
        if len(self.class_weights) not in (0, 2):
            raise UserError(
                f"class_weights needs a weight for 0 and one for 1, not {self.class_weights}"
            )

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, `nll` and `accuracy`."""
        right = (_logit(outputs) > 0) == (batch[self.targets] > 0)
        return {
            "loss": self.objective(outputs, batch),
            "nll": Mean.of(self._cross_entropy(outputs, batch), batch["mask"]),
            "accuracy": Mean.of(right.astype(jnp.float32), batch["mask"]),
        }

    def objective(self, outputs: jax.Array, batch: Batch) -> Mean:
        """Computes the training loss, a mean weighted by `class_weights`."""
        weights = batch["mask"]
        if self.class_weights:
            weights = weights * jnp.asarray(self.class_weights)[batch[self.targets].astype(int)]
        return Mean.of(self._cross_entropy(outputs, batch), weights)

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the probability of class 1, (batch,) float32."""
        del batch
        return jax.nn.sigmoid(_logit(one_array(outputs, self)))

    def target(self, batch: Batch) -> jax.Array:
        """Returns classes, (batch,) int32."""
        return batch[self.targets].astype(jnp.int32)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the predicted class by name or number, and the `probability` of class 1.

        With `conformal` also the classes of the `prediction_set`.
        """
        chosen = int(prediction > 0.5)
        shown = names[chosen] if len(names) == 2 else chosen
        found = {"prediction": shown, "probability": round(float(prediction), 6)}
        if self.conformal is not None:
            both = np.array([1 - prediction, prediction], np.float32)
            found["prediction_set"] = self.conformal.to_json(both, names)
        return found

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires labels that are 0 or 1."""
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
        return optax.sigmoid_binary_cross_entropy(_logit(outputs), labels)


def _logit(outputs: jax.Array) -> jax.Array:
    """Converts outputs (batch, 1) to float32 (batch,).

    Raises:
      UserError: they have another shape.
    """
    if outputs.shape[1:] != (1,):
        raise UserError(
            f"the model's output has shape {outputs.shape}, where binary classification needs one "
            f"logit per example, (batch, 1)"
        )
    return outputs[:, 0].astype(jnp.float32)
