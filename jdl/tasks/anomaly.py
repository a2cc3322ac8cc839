"""Anomaly detection from normal rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.forward import forward
from jdl.tasks.outputs import one_array
from jdl.tasks.randomness import row_keys
from jdl.typing import Batch, Json, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class AnomalyDetection(Task):
    """Tells rows from copies with noise, whose logit (batch, 1) is then the score of an anomaly.

    That is unsupervised as supervised learning (Hastie et al., 2009, section 14.2.4). In a
    copy each column gets normal noise with probability `share`, of one deviation for the row,
    log-uniform within `noise`. Rows of class 1 that are in training, a few known anomalies, count
    as copies with `anomaly_weight`; with none of these, as by `data.train_limits`, nothing but
    normal rows is learned from.

    Metrics: `loss`, cross-entropy in nats of rows and copies; `metrics` such as `AUPRC` compare
    scores with the targets 0 and 1.
    """

    inputs: str = "x"  # name of the scaled rows in a batch
    targets: str = "y"  # name of their classes, 1 for an anomaly
    noise: tuple[float, float] = (0.1, 10.0)  # smallest and largest deviation
    share: float = 0.5  # of the columns that get noise
    anomaly_weight: float = 1.0  # of a training row of class 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.noise[0] <= self.noise[1] and 0 < self.share <= 1):
            raise UserError(
                f"task.noise needs two deviations above 0 in rising order and task.share a number "
                f"in (0, 1], not {self.noise} and {self.share}"
            )

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
        """Computes `loss`, and in evaluation `metrics` of the scores."""
        x, mask = batch[self.inputs], batch["mask"]
        both = jnp.concatenate([x, self.corrupt(batch)])
        found, collections = forward(model, params, state.collections, both, train=train, key=key)
        real, copies = jnp.split(one_array(found, self)[:, 0].astype(jnp.float32), 2)
        anomaly = batch[self.targets] > 0
        weight = jnp.where(anomaly, self.anomaly_weight, 1.0) * mask
        losses = jnp.concatenate(
            [jax.nn.softplus(jnp.where(anomaly, -real, real)), jax.nn.softplus(-copies)]
        )
        metrics: dict[str, Any] = {
            "loss": Mean.of(losses, jnp.concatenate([weight, mask * (1.0 - anomaly)]))
        }
        return metrics | self.further_metrics(real[:, None], batch, train=train), collections

    def corrupt(self, batch: Batch) -> jax.Array:
        """Returns copies of the rows with noise, (batch, columns)."""
        low, high = np.log(self.noise)

        def one(key: Key, row: jax.Array) -> jax.Array:
            which, level, draw, first = jax.random.split(key, 4)
            noisy = jax.random.bernoulli(which, self.share, row.shape)
            # At least one column, since a copy without noise is none.
            noisy = noisy.at[jax.random.randint(first, (), 0, len(row))].set(True)
            deviation = jnp.exp(jax.random.uniform(level, (), minval=low, maxval=high))
            return row + noisy * deviation * jax.random.normal(draw, row.shape)

        return jax.vmap(one)(row_keys(batch), batch[self.inputs])

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the score, (batch,) float32: a sigmoid of a sixteenth of the logit."""
        del batch
        # Far rows differ in their logits where the float32 of a sigmoid is 1 for all of them.
        return jax.nn.sigmoid(one_array(outputs, self)[:, 0].astype(jnp.float32) / 16)

    def target(self, batch: Batch) -> jax.Array:
        """Returns classes, (batch,) int32."""
        return batch[self.targets].astype(jnp.int32)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the score."""
        del names
        return {"prediction": round(float(prediction), 6)}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires classes 0 and 1, and one output."""
        super().validate_batch(batch, outputs, where)
        classes = np.asarray(batch[self.targets])
        wrong = np.flatnonzero((classes != 0) & (classes != 1)) if classes.ndim == 1 else [0]
        if len(wrong):
            raise UserError(
                f"{where}: {self.targets!r} holds {classes[wrong[0]]} at row {wrong[0]}, where "
                f"anomaly detection needs 0 or 1 per row"
            )
