"""Classification: one of several classes per example."""

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
from jdl.typing import Batch, Json, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Softmax cross-entropy on logits (batch, classes) with integer labels (batch,).

    Metrics: `loss` in nats and `accuracy` as a fraction. The training loss is smoothed by
    `label_smoothing`; the evaluated one is not. Where a transform has mixed examples (`Mixup`),
    labels are shares of the classes (batch, classes), and the largest counts as right.
    """

    label_smoothing: float = 0.0  # share of the target spread over all classes (Szegedy, 2016)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is a share in [0, 1), not {self.label_smoothing}")

    def measure(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """`loss`, without smoothing, and `accuracy`."""
        labels = batch[self.targets]
        labels = labels if labels.ndim == 1 else labels.argmax(-1)
        right = outputs.argmax(-1) == labels
        return {
            "loss": Mean.of(self._cross_entropy(outputs, batch, 0.0), batch["mask"]),
            "accuracy": Mean.of(right.astype(jnp.float32), batch["mask"]),
        }

    def loss(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, key: Key
    ) -> tuple[jax.Array, jax.Array, dict[str, PyTree], Metrics]:
        """See `Task.loss`; the weight is the number of unmasked examples."""
        logits, collections = forward(
            model, params, state.collections, batch[self.inputs], train=True, key=key
        )
        metrics = self.measure(logits, batch)
        loss = metrics["loss"]
        if self.label_smoothing:
            loss = Mean.of(self._cross_entropy(logits, batch, self.label_smoothing), batch["mask"])
        return loss.total, loss.count, collections, metrics

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Class probabilities, (batch, classes) float32."""
        logits, _ = forward(model, state.params, state.collections, batch[self.inputs], train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    def describe(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """The likeliest class, by name or number, its `probability` and all `probabilities`."""
        chosen = int(np.argmax(prediction))
        shares = [round(float(share), 6) for share in prediction]
        return {
            "prediction": names[chosen] if len(names) == len(shares) else chosen,
            "probability": shares[chosen],
            "probabilities": shares,
        }

    def check(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also raises for logits of the wrong rank and for labels that are no class."""
        super().check(batch, outputs, where)
        if len(outputs.shape) != 2:
            raise UserError(
                f"the model's output has shape {outputs.shape}, where classification needs logits "
                f"of shape (batch, classes)"
            )
        labels, classes = np.asarray(batch[self.targets]), outputs.shape[-1]
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{where}: {self.targets!r} has shape {labels.shape} and dtype {labels.dtype}, "
                f"where classification needs one integer per example"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            raise UserError(
                f"{where}: label {labels[wrong[0]]} at row {wrong[0]} is outside 0..{classes - 1} "
                f"(the model has {classes} outputs)"
            )

    def _cross_entropy(self, logits: jax.Array, batch: Batch, smoothing: float) -> jax.Array:
        labels = batch[self.targets]
        logits = logits.astype(jnp.float32)
        if labels.ndim == 1 and not smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        shares = jax.nn.one_hot(labels, logits.shape[-1]) if labels.ndim == 1 else labels
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(shares, smoothing))
